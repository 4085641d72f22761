
document.querySelectorAll(".runs table").forEach(table => {
  const body = table.tBodies[0], heads = [...table.querySelectorAll("thead th[aria-sort]")];
  const key = (row, at) => row.cells[at].dataset.v;
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "none" ? "high" in head.dataset : head.ariaSort === "ascending";
    const isNumber = head.classList.contains("num");
    heads.forEach(other => { other.ariaSort = "none"; });
    head.ariaSort = down ? "descending" : "ascending";
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = key(a, at), y = key(b, at);
      if (x === "" || y === "") return (x === "") - (y === "");
      const by = isNumber ? x - y : x < y ? -1 : x > y ? 1 : 0;
      return down ? -by : by;
    });
    body.append(...rows);
  }));
  const filter = document.createElement("input");
  filter.type = "search"; filter.className = "runs-filter"; filter.placeholder = "filter rows";
  filter.setAttribute("aria-label", "filter rows");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
  table.parentElement.before(filter);
});
