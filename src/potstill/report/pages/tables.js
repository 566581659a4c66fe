"use strict";
// Tables: sort by any column, filter by text, CSV. What a reader sees is what is in the file.
const potstill = {};
(() => {
  const value = (row, column) => {
    const cell = row.children[column];
    return cell ? (cell.dataset.value ?? cell.textContent).trim() : "";
  };

  // Numbers by size, words by letters, what is not known last in either direction.
  const compare = (a, b, down) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return down ? -order : order;
  };

  const sort = (head) => {
    const table = head.closest("table");
    const heads = [...head.parentElement.children];
    const column = heads.indexOf(head);
    const before = head.getAttribute("aria-sort");
    const first = column === 0 ? "ascending" : "descending";
    const other = column === 0 ? "descending" : "ascending";
    const order = before === first ? other : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const body = table.querySelector("tbody.rows");
    const rows = [...body.children];
    rows.sort((a, b) => compare(value(a, column), value(b, column), order === "descending"));
    body.append(...rows);
  };

  const filter = (input) => {
    const table = input.closest("section").querySelector("table.sortable");
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.querySelectorAll("tbody.rows > tr")) {
      const text = row.textContent.toLowerCase();
      row.classList.toggle("unmatched", !words.every((word) => text.includes(word)));
    }
  };

  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  // A spreadsheet runs a text that begins like a formula; numbers may begin with a sign.
  const harmless = (text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);

  potstill.csv = (rows) =>
    rows.map((row) => row.map((cell) => quoted(harmless(String(cell ?? "")))).join(",") + "\n").join("");

  potstill.save = (name, text) => {
    const link = document.createElement("a");
    link.download = `${name.replace(/[^\w.-]+/g, "-")}.csv`;
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  const tableRows = (table) =>
    [...table.querySelectorAll("tr")]
      .filter((row) => !row.matches(".out, .unmatched"))
      .map((row) =>
        [...row.children].map((cell, i) =>
          cell.closest("thead") ? cell.innerText.replace(/\s+/g, " ").trim() : value(row, i),
        ),
      );

  potstill.tables = () => {
    document.querySelectorAll("th .sort").forEach((button) => {
      button.addEventListener("click", () => sort(button.closest("th")));
    });
    document.querySelectorAll(".filter").forEach((input) => {
      input.addEventListener("input", () => filter(input));
    });
    document.querySelectorAll("[data-table]").forEach((button) => {
      const table = document.getElementById(button.dataset.table);
      button.addEventListener("click", () => potstill.save(table.dataset.name, potstill.csv(tableRows(table))));
    });
  };
})();
