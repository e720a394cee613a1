for (const range of document.querySelectorAll(".compare input[type=range]"))
  range.addEventListener("input", () => range.closest(".compare").style.setProperty("--cut", range.value + "%"));
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead button").forEach((button) =>
    button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex, body = table.tBodies[0];
      const down = head.getAttribute("aria-sort") !== "descending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b), n = Number(x), m = Number(y);
        return x !== "" && y !== "" && Number.isFinite(n) && Number.isFinite(m) ? n - m : x.localeCompare(y);
      });
      if (down) rows.reverse();
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    }));
addEventListener("beforeprint", () => document.querySelectorAll("details.print").forEach((details) => (details.open = true)));
