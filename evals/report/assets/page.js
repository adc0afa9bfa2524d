"use strict";
// Sorting, filtering and opening rows. Each run is a <tbody>: its row and, hidden, its details.
// The filters stand in the address after '#', so that a view can be linked to.

const form = document.getElementById("filters");
const runs = [...document.querySelectorAll("tbody[data-method]")];

function filter() {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  let shown = 0;
  for (const run of runs) {
    run.hidden = !wanted.every(([name, value]) => name === "text"
      ? run.textContent.toLowerCase().includes(value.toLowerCase())
      : run.dataset[name] === value);
    shown += !run.hidden;
  }
  for (const section of document.querySelectorAll("section:has(table)"))
    section.hidden = !section.querySelector("tbody[data-method]:not([hidden])");
  document.getElementById("shown").textContent = `${shown} of ${runs.length} runs`;
  history.replaceState(null, "", "#" + new URLSearchParams(wanted));
}

function sort(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const numbers = head.dataset.kind === "number";
  // Numbers begin with the largest, words with the first; another click turns the order round.
  const descending = head.ariaSort ? head.ariaSort === "ascending" : numbers;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.ariaSort = descending ? "descending" : "ascending";
  const value = (run) => run.rows[0].cells[column].dataset.value;
  const compare = (a, b) => numbers ? Number(a) - Number(b) : a.localeCompare(b);
  const order = [...table.tBodies].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // empty cells stay last
    return descending ? compare(y, x) : compare(x, y);
  });
  table.append(...order);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.closest("thead")) sort(button.closest("th"));
  if (button?.className === "open") {
    const details = button.closest("tbody").querySelector(".details");
    details.hidden = !details.hidden;
    button.ariaExpanded = String(!details.hidden);
  }
});
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter)); // after the fields are empty
form.addEventListener("submit", (event) => event.preventDefault());

for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
  if (form.elements[name]) form.elements[name].value = value;
filter();
