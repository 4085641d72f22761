(() => {
  const open = () => {
    const place = location.hash && document.getElementById(location.hash.slice(1));
    if (place && place.tagName === "DETAILS") { place.open = true; place.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  document.addEventListener("click", event => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) open();
  });
  open();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach(one => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach(one => { one.open = false; }));
  const body = document.querySelector(".runs tbody"), shown = document.getElementById("shown");
  if (!body) return;
  const count = () => {
    const all = body.rows.length, left = [...body.rows].filter(row => !row.hidden).length;
    shown.textContent = left === all ? `${all} rows.` : `${left} of ${all} rows.`;
  };
  document.querySelectorAll(".runs-filter").forEach(filter => filter.addEventListener("input", count));
  count();
})();
