// A click on a heading sorts by the cells' data-v: numbers by value, texts by letter, empty cells (not measured) last.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex, body = table.tBodies[0];
      const up = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort");
      const key = row => row.cells[column].dataset.v;
      const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      const order = (one, other) => {
        const a = key(one), b = key(other);
        return a === "" || b === "" ? (a === "") - (b === "") : (up ? 1 : -1) * compare(a, b);
      };
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...[...body.rows].sort(order));
    });
  }
}
