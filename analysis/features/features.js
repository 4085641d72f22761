"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const CHUNK = 128, PEAKS = 3, BINS = 64, FIFTHS = 5, ROWS = 100, AT_ONCE = 8;
  const byId = id => document.getElementById(id);

  // Everything is put on the page by these: no text is ever read as markup.
  const element = (name, content = [], attributes = {}) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...(Array.isArray(content) ? content : [content]));
    return made;
  };
  const number = value => {
    if (!Number.isFinite(value)) return "";
    const size = Math.abs(value);
    return size === 0 ? "0" : size >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(size >= 100 ? 4 : 3);
  };
  const percent = value => value === 0 ? "0" : `${(100 * value).toPrecision(value < 1e-4 ? 2 : 3)} %`;

  const inflate = async packed => {
    const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Reader(new Uint8Array(await new Response(stream).arrayBuffer()));
  };
  class Reader { // arrays one behind another, each in planes of bytes, the least significant first
    constructor(bytes) { this.bytes = bytes; this.at = 0; }
    take(Kind, n) {
      const width = Kind.BYTES_PER_ELEMENT, out = new Uint8Array(n * width);
      for (let plane = 0; plane < width; plane++)
        for (let i = 0, from = this.at + plane * n; i < n; i++) out[i * width + plane] = this.bytes[from + i];
      this.at += n * width;
      return new Kind(out.buffer);
    }
  }

  class Run {
    constructor(content) {
      Object.assign(this, content);
      this.size = this.about.d_sae;
      this.labels = this.about.labels;
      this.unpacked = new Map();
    }
    async open() {
      const reader = await inflate(this.overview), n = this.size;
      const active = reader.take(Uint32Array, n);
      this.measures = {
        density: Float64Array.from(active, count => count / Math.max(this.n_tokens, 1)),
        contexts: reader.take(Uint32Array, n),
        largest: reader.take(Float32Array, n),
        mean: reader.take(Float32Array, n),
        nearest: reader.take(Float32Array, n),
        overlap: reader.take(Float32Array, n),
        information: reader.take(Float32Array, n),
      };
      this.label = reader.take(Int32Array, n);
      this.peaks = reader.take(Int32Array, n * PEAKS);
      this.active = active;
      return this;
    }
    chunk(at) {
      if (!this.unpacked.has(at)) this.unpacked.set(at, this.read(at));
      return this.unpacked.get(at);
    }
    async read(at) {
      const reader = await inflate(this.chunks[at]), m = Math.min(CHUNK, this.size - at * CHUNK);
      const found = { m, end: reader.take(Float32Array, m), histogram: reader.take(Uint32Array, m * BINS) };
      for (const name of this.logits ? ["raised", "lowered"] : []) {
        found[name] = reader.take(Uint32Array, m * this.logits);
        found[`${name}Logits`] = reader.take(Float32Array, m * this.logits);
      }
      for (const name of ["cosine", "overlap"]) {
        found[`${name}Nearest`] = reader.take(Int32Array, m * this.nearest);
        found[name] = reader.take(Float32Array, m * this.nearest);
      }
      found.labelActive = reader.take(Uint32Array, m * this.labels.length);
      const top = reader.take(Uint8Array, m), drawn = reader.take(Uint8Array, m);
      const n = top.reduce((sum, one) => sum + one, 0) + drawn.reduce((sum, one) => sum + one, 0);
      const place = reader.take(Uint32Array, n), fifth = reader.take(Uint8Array, n), count = reader.take(Uint16Array, n);
      const all = count.reduce((sum, one) => sum + one, 0);
      const offset = reader.take(Uint16Array, all), value = reader.take(Float32Array, all);
      found.examples = [];
      for (let feature = 0, example = 0, at = 0; feature < m; feature++) {
        const own = [];
        for (let i = 0; i < top[feature] + drawn[feature]; i++, example++) {
          const end = at + count[example];
          own.push({ place: place[example], fifth: fifth[example], offset: offset.subarray(at, end), value: value.subarray(at, end) });
          at = end;
        }
        found.examples.push(own);
      }
      return found;
    }
    async feature(index) {
      const found = await this.chunk(Math.floor(index / CHUNK)), i = index % CHUNK;
      const part = (name, n) => found[name] && found[name].subarray(i * n, (i + 1) * n);
      return {
        index, end: found.end[i], histogram: part("histogram", BINS), examples: found.examples[i],
        raised: part("raised", this.logits), raisedLogits: part("raisedLogits", this.logits),
        lowered: part("lowered", this.logits), loweredLogits: part("loweredLogits", this.logits),
        cosineNearest: part("cosineNearest", this.nearest), cosine: part("cosine", this.nearest),
        overlapNearest: part("overlapNearest", this.nearest), overlap: part("overlap", this.nearest),
        labelActive: part("labelActive", this.labels.length),
      };
    }
  }

  class Text {
    constructor(content) { Object.assign(this, content); this.isSpecial = new Set(this.special); }
    async open() {
      if (this.ids) return this;
      const n = this.length = (await (this.reading ??= inflate(this.tokens))).bytes.length / 4;
      const reader = await this.reading;
      reader.at = 0;
      this.ids = reader.take(Uint32Array, n);
      return this;
    }
    string(id) { return this.strings[id] ?? `token ${id}`; }
    // 1 for the tokens that any occurrence of the words touches
    touched(words) {
      const found = new Uint8Array(this.ids.length), L = this.context;
      for (let first = 0; first < this.ids.length; first += L) {
        let text = "";
        const ends = [];
        for (let i = 0; i < L; i++) ends.push((text += this.string(this.ids[first + i])).length);
        text = text.toLowerCase();
        for (let at = text.indexOf(words), token = 0; at >= 0; at = text.indexOf(words, at + 1)) {
          while (ends[token] <= at) token++;
          for (let i = token; i < L && (i === token || ends[i - 1] < at + words.length); i++) found[first + i] = 1;
        }
      }
      return found;
    }
  }

  const runs = await Promise.all(data.runs.map(content => new Run(content).open()));
  const texts = Object.fromEntries(Object.entries(data.texts).map(([key, content]) => [key, new Text(content)]));
  const textOf = run => texts[run.text];

  const MEASURES = {
    density: ["density", percent, "share of tokens on which it fires"],
    largest: ["largest", number, "largest activation"],
    mean: ["mean", number, "mean activation where it fires"],
    contexts: ["contexts", (count) => count.toLocaleString("en"), "contexts in which it fires"],
    nearest: ["nearest", number, "largest |cosine| with another decoder row"],
    overlap: ["overlap", number, "largest overlap of its tokens with another feature's"],
    information: ["label information", number, "how far it tells the text's labels apart, 0 to 1"],
  };
  const shownMeasures = Object.keys(MEASURES).filter(key => key !== "information" || runs.some(run => run.labels.length));

  // ---- address: #feature=RUN:12,RUN:40 with run, sort, q, in, by, from, to; other keys are left alone

  const addressed = () => new URLSearchParams(location.hash.slice(1));
  const link = (run, ...features) => {
    const address = addressed();
    address.set("feature", features.map(index => `${run.run}:${index}`).join(","));
    return `#${decodeURIComponent(address.toString())}`;
  };
  const selected = () => (addressed().get("feature") ?? "").split(",").filter(Boolean).map(word => {
    const cut = word.lastIndexOf(":"), index = Number(word.slice(cut + 1));
    const run = cut < 0 ? state.run : runs.find(run => run.run === word.slice(0, cut));
    return run && Number.isInteger(index) && index >= 0 && index < run.size ? [run, index] : null;
  }).filter(Boolean);

  // ---- the list

  const state = { run: runs[0], sort: "overlap", down: true, page: 0, rows: [] };
  const controls = { query: "q", where: "in", measure: "by", least: "from", most: "to" };

  const head = byId("features").tHead.rows[0];
  const column = (key, title, hint, kind = "n") => {
    const button = element("button", title, { type: "button", title: hint });
    const cell = element("th", button, { scope: "col", class: kind, "data-key": key });
    button.addEventListener("click", () => {
      state.down = state.sort === key ? !state.down : key !== "feature";
      state.sort = key;
      remember();
      list();
    });
    head.append(cell);
  };
  column("feature", "feature", "its number in the SAE");
  head.append(element("th", "fires most on", { scope: "col" }));
  for (const key of shownMeasures) column(key, MEASURES[key][0], MEASURES[key][2], ["mean", "contexts", "largest"].includes(key) ? "n wide" : "n");
  if (runs.some(run => run.labels.length)) head.append(element("th", "label", { scope: "col", class: "wide" }));
  for (const key of shownMeasures) byId("measure").append(element("option", MEASURES[key][0], { value: key }));

  const remember = () => {
    const address = addressed();
    const put = (key, value, usual) => value === usual ? address.delete(key) : address.set(key, value);
    put("run", state.run.run, runs[0].run);
    put("sort", `${state.sort}${state.down ? "-" : ""}`, "overlap-");
    for (const [id, key] of Object.entries(controls)) put(key, byId(id).value, id === "where" ? "fires" : id === "measure" ? "density" : "");
    history.replaceState(null, "", `#${decodeURIComponent(address.toString())}`);
  };
  const recall = () => {
    const address = addressed(), run = runs.find(run => run.run === address.get("run"));
    state.run = run ?? selected()[0]?.[0] ?? runs[0];
    byId("run").value = runs.indexOf(state.run);
    const sort = address.get("sort") ?? "overlap-";
    state.down = sort.endsWith("-");
    state.sort = sort.replace(/-$/, "");
    if (state.sort !== "feature" && !shownMeasures.includes(state.sort)) state.sort = "feature";
    for (const [id, key] of Object.entries(controls)) if (address.has(key)) byId(id).value = address.get(key);
  };

  // Numbers of the features that the search finds; null for all
  const search = async (run, words, where) => {
    words = words.trim().toLowerCase();
    if (!words) return null;
    if (/^\d+$/.test(words) && Number(words) < run.size && where === "fires") return new Set([Number(words)]);
    const found = new Set(), text = await textOf(run).open();
    if (where === "label") {
      run.label.forEach((label, index) => { if (label >= 0 && run.labels[label].toLowerCase().includes(words)) found.add(index); });
      return found;
    }
    const fits = new Map();
    const named = id => {
      if (!fits.has(id)) fits.set(id, text.string(id).toLowerCase().includes(words));
      return fits.get(id);
    };
    const touched = where === "fires" || where === "contexts" ? text.touched(words.replaceAll("\n", "↵")) : null;
    const before = run.about.before, width = before + 1 + run.about.after;
    for (let at = 0; at < run.chunks.length; at++) {
      const chunk = await run.chunk(at);
      for (let i = 0; i < chunk.m; i++) {
        const hit = touched
          ? chunk.examples[i].some(example => {
            const first = example.place - before;
            if (where === "fires") return example.offset.some(offset => touched[first + offset]);
            const start = example.place - example.place % text.context;
            return touched.subarray(Math.max(first, start), Math.min(first + width, start + text.context)).includes(1);
          })
          : (chunk[where === "raises" ? "raised" : "lowered"] ?? []).subarray(i * run.logits, (i + 1) * run.logits).some(named);
        if (hit) found.add(at * CHUNK + i);
      }
    }
    return found;
  };

  let turn = 0;
  const list = async () => {
    const mine = ++turn, run = state.run;
    const found = await search(run, byId("query").value, byId("where").value);
    if (mine !== turn) return; // a later search has begun
    const values = run.measures[byId("measure").value], least = byId("least").value, most = byId("most").value;
    const rows = [];
    for (let index = 0; index < run.size; index++) {
      if (found && !found.has(index)) continue;
      if (least !== "" && !(values[index] >= Number(least))) continue;
      if (most !== "" && !(values[index] <= Number(most))) continue;
      rows.push(index);
    }
    const sorting = run.measures[state.sort], sign = state.down ? -1 : 1;
    const order = state.sort === "nearest" ? index => Math.abs(sorting[index]) : index => sorting[index];
    if (sorting) rows.sort((a, b) => {
      const x = order(a), y = order(b);
      return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) || a - b : sign * (x - y) || a - b;
    });
    else if (state.down) rows.reverse();
    state.rows = rows;
    state.page = 0;
    draw();
  };

  const chips = (run, index) => [...run.peaks.subarray(index * PEAKS, (index + 1) * PEAKS)].filter(id => id >= 0)
    .flatMap(id => [element("span", textOf(run).string(id), { class: "token chip" }), " "]);
  const draw = () => {
    const run = state.run, first = state.page * ROWS, some = state.rows.slice(first, first + ROWS);
    byId("count").textContent = `${state.rows.length.toLocaleString("en")} of ${run.size.toLocaleString("en")} features of ${run.run}.`;
    byId("features").tBodies[0].replaceChildren(...some.map(index => {
      const row = element("tr", [
        element("th", element("a", String(index), { href: link(run, index) }), { scope: "row", class: "n" }),
        element("td", chips(run, index)),
        ...shownMeasures.map(key => element("td", MEASURES[key][1](run.measures[key][index]),
          { class: ["mean", "contexts", "largest"].includes(key) ? "n wide" : "n" })),
      ]);
      if (runs.some(one => one.labels.length)) row.append(element("td", run.label[index] < 0 ? "" : run.labels[run.label[index]], { class: "wide" }));
      return row;
    }));
    for (const cell of head.cells) {
      const key = cell.dataset.key;
      if (key) cell.setAttribute("aria-sort", key !== state.sort ? "none" : state.down ? "descending" : "ascending");
    }
    byId("place").textContent = state.rows.length ? `${first + 1} to ${first + some.length}` : "none";
    byId("before").disabled = !state.page;
    byId("after").disabled = first + ROWS >= state.rows.length;
  };

  // ---- details

  const SVG = "http://www.w3.org/2000/svg";
  const histogram = (run, feature) => {
    const width = 320, height = 96, picture = document.createElementNS(SVG, "svg");
    picture.setAttribute("class", "histogram");
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("role", "img");
    const last = feature.histogram.findLastIndex(count => count), most = Math.max(...feature.histogram);
    picture.setAttribute("aria-label", `Histogram of its activations, up to ${number(run.measures.largest[feature.index])}`);
    for (let bin = 0; bin <= last; bin++) {
      const tall = height * Math.log1p(feature.histogram[bin]) / Math.log1p(most), bar = document.createElementNS(SVG, "rect");
      const place = { x: bin * width / (last + 1) + .5, y: height - tall, width: width / (last + 1) - 1, height: tall };
      for (const [key, value] of Object.entries(place)) bar.setAttribute(key, value);
      const title = document.createElementNS(SVG, "title"), step = feature.end / BINS;
      title.textContent = `${number(bin * step)} to ${number((bin + 1) * step)}: ${feature.histogram[bin].toLocaleString("en")} tokens`;
      bar.append(title);
      picture.append(bar);
    }
    return [picture, element("div", [element("span", "0"), element("span", `height: log(1 + tokens), up to ${most.toLocaleString("en")}`),
      element("span", number((last + 1) * feature.end / BINS))], { class: "axis" })];
  };

  const example = (run, feature, one) => {
    const text = textOf(run), L = text.context, start = one.place - one.place % L, before = run.about.before;
    const value = new Map([...one.offset].map((offset, i) => [one.place - before + offset, one.value[i]]));
    const largest = run.measures.largest[feature.index], words = element("div", [], { class: "token" });
    const whole = (from, to) => {
      words.replaceChildren();
      for (let at = Math.max(from, start); at < Math.min(to, start + L); at++) {
        const id = text.ids[at], token = element("span", text.isSpecial.has(id) ? "¶" : text.string(id));
        if (text.isSpecial.has(id)) { token.className = "special"; token.title = text.string(id); }
        if (value.has(at)) {
          token.style.setProperty("--a", Math.max(.08, .85 * value.get(at) / largest).toFixed(3));
          token.title = String(value.get(at));
          token.dataset.value = value.get(at);
        }
        if (at === one.place) token.classList.add("own");
        words.append(token);
      }
    };
    const shortly = () => whole(one.place - before, one.place + run.about.after + 1);
    shortly();
    const button = element("button", number(value.get(one.place)), { type: "button", title: "show the whole context (only the part around the token is coloured)" });
    let open = false;
    button.addEventListener("click", () => { open = !open; open ? whole(start, start + L) : shortly(); });
    return element("div", [button, words], { class: "example", "data-place": one.place });
  };

  const table = (caption, rows) => element("table", [element("caption", caption), element("tbody", rows)]);
  const logits = (run, caption, ids, values) => table(caption, [...ids].map((id, i) => element("tr", [
    element("td", element("span", textOf(run).string(id), { class: "token chip" })), element("td", number(values[i]), { class: "n" })])));
  const neighbours = (run, feature, caption, ids, values) => table(caption, [...ids].map((id, i) => id < 0 ? "" : element("tr", [
    element("td", [element("a", String(id), { href: link(run, id) }), " ", ...chips(run, id).slice(0, 3)]),
    element("td", element("a", values[i].toFixed(3), { href: link(run, feature.index, id), title: "both side by side" }), { class: "n" })])).filter(Boolean));

  const labels = (run, feature) => {
    const total = run.label_tokens.reduce((sum, one) => sum + one, 0), all = feature.labelActive.reduce((sum, one) => sum + one, 0);
    const rows = run.labels.map((name, i) => {
      const on = feature.labelActive[i] / run.label_tokens[i], off = (all - feature.labelActive[i]) / (total - run.label_tokens[i]);
      return { name, on, off, gap: on - off };
    }).filter(row => Number.isFinite(row.gap)).sort((a, b) => Math.abs(b.gap) - Math.abs(a.gap)).slice(0, 4);
    return element("table", [element("caption", `Labels: information ${number(run.measures.information[feature.index])}`),
      element("thead", element("tr", ["label", "fires on its tokens", "on the others"].map((name, i) => element("th", name, { scope: "col", class: i ? "n" : "" })))),
      element("tbody", rows.map(row => element("tr", [element("td", row.name), element("td", percent(row.on), { class: "n" }), element("td", percent(row.off), { class: "n" })])))]);
  };

  const card = async (run, index) => {
    await textOf(run).open();
    const feature = await run.feature(index), value = key => MEASURES[key][1](run.measures[key][index]);
    const at = state.run === run ? state.rows.indexOf(index) : -1;
    const step = (title, by) => {
      const button = element("button", title, { type: "button", class: "step" });
      const next = state.rows[at + by];
      button.disabled = at < 0 || next === undefined;
      button.addEventListener("click", () => { location.hash = link(run, next); });
      return button;
    };
    const top = feature.examples.filter(one => one.fifth === FIFTHS), examples = some => some.map(one => example(run, feature, one));
    const left = element("div", [], { class: "fires" }), right = element("div");
    if (!top.length) left.append(element("p", "It fires on no token that was read."));
    else left.append(element("h3", "Where it fires most"), ...examples(top.slice(0, AT_ONCE)));
    if (top.length > AT_ONCE) left.append(element("details", [element("summary", `${top.length - AT_ONCE} more`), ...examples(top.slice(AT_ONCE))]));
    for (let fifth = 0; fifth < FIFTHS; fifth++) {
      const some = feature.examples.filter(one => one.fifth === fifth);
      if (!some.length) continue;
      const name = ["Strongest fifth", "Second fifth", "Middle fifth", "Fourth fifth", "Weakest fifth"][fifth];
      left.append(element("h3", `${name}, drawn`), ...examples(some));
    }
    right.append(element("h3", "Activations"), ...(top.length ? histogram(run, feature) : [element("p", "none")]));
    if (run.logits) right.append(element("h3", "Logits"), element("div", [
      logits(run, "raises", feature.raised, feature.raisedLogits), logits(run, "lowers", feature.lowered, feature.loweredLogits)], { class: "pair" }));
    right.append(element("h3", "Nearest features"), element("div", [
      neighbours(run, feature, "by cosine", feature.cosineNearest, feature.cosine),
      neighbours(run, feature, "by overlap", feature.overlapNearest, feature.overlap)], { class: "pair" }));
    if (run.labels.length) right.append(labels(run, feature));
    return element("article", [
      element("header", [element("h2", `Feature ${index}`), element("span", run.run, { class: "quiet" }), step("Previous", -1), step("Next", 1)]),
      element("p", `Fires on ${run.active[index].toLocaleString("en")} of ${run.n_tokens.toLocaleString("en")} tokens (${value("density")}), in ${value("contexts")} contexts; ` +
        `largest ${value("largest") || "none"}, mean ${value("mean")}; nearest cosine ${value("nearest")}, overlap ${value("overlap")}.`),
      element("div", [left, right], { class: "columns" })], { class: "feature", "data-feature": index });
  };

  let shownTurn = 0;
  const show = async () => {
    const mine = ++shownTurn, some = selected();
    const cards = await Promise.all(some.map(([run, index]) => card(run, index)));
    if (mine !== shownTurn) return;
    const place = byId("details");
    place.hidden = !cards.length;
    place.classList.toggle("alone", cards.length === 1);
    place.replaceChildren(...cards);
    if (cards.length) place.scrollIntoView();
  };

  byId("run").closest("label").hidden = runs.length < 2;
  if (!runs.some(run => run.labels.length)) byId("where").querySelector("[value=label]").remove();
  if (!runs.some(run => run.logits)) byId("where").querySelectorAll("[value=raises], [value=lowers]").forEach(one => one.remove());
  let waiting;
  byId("search").addEventListener("input", () => {
    state.run = runs[Number(byId("run").value)];
    clearTimeout(waiting);
    waiting = setTimeout(() => { remember(); list(); }, 150);
  });
  byId("search").addEventListener("submit", event => event.preventDefault());
  byId("before").addEventListener("click", () => { state.page--; draw(); });
  byId("after").addEventListener("click", () => { state.page++; draw(); });
  addEventListener("hashchange", () => { const run = state.run; recall(); run === state.run ? draw() : list(); show(); });
  recall();
  await list();
  await show();
  document.documentElement.dataset.ready = "true";
})();
