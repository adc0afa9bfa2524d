"use strict";
// Sorting, filtering and opening rows, and the view of what was kept. Each run is a <tbody>: its row and, hidden, its
// details. What is chosen, sorted and open stands in the address after '#', so that a view can be linked to.

const form = document.getElementById("filters");
const runs = [...document.querySelectorAll("tbody[data-method]")];
const heads = [...document.querySelectorAll("thead th")];
const details = (run) => run.querySelector(".details");
const redrawKept = []; // what draws the view of what was kept anew, when other runs are shown

// ---- filters ----

function chosen() {
  const values = {};
  for (const [name, value] of new FormData(form)) if (value) (values[name] ??= []).push(value);
  return values;
}

// What is seen of a run: its row, its table's title, and its details once they are open.
function seen(run) {
  const open = details(run).hidden ? "" : details(run).textContent;
  return [run.rows[0].textContent, run.closest("section").querySelector("h2").textContent, open].join(" ").toLowerCase();
}

function matches(run, values) {
  return Object.entries(values).every(([name, wanted]) => name === "text"
    ? wanted[0].toLowerCase().split(/\s+/).every((word) => seen(run).includes(word))
    : wanted.includes(run.dataset[name]));
}

function filter() {
  const values = chosen();
  for (const run of runs) run.hidden = !matches(run, values);
  for (const section of document.querySelectorAll("section:has(table)")) {
    const any = section.querySelector("tbody[data-method]:not([hidden])");
    for (const full of any ? section.querySelectorAll("tbody.full") : []) full.hidden = false; // beside every other
    section.hidden = !any;
  }
  for (const name of form.querySelectorAll("[data-of]"))
    name.textContent = values[name.dataset.of]?.join(", ") ?? "all";
  redrawKept.forEach((redraw) => redraw());
  document.getElementById("shown").textContent = `${runs.filter((run) => !run.hidden).length} of ${runs.length} runs`;
  remember();
}

// ---- sorting ----

// Numbers begin with the largest, words with the first; another click turns the order round.
function sort(head, descending = head.ariaSort ? head.ariaSort === "ascending" : head.dataset.kind === "number") {
  const table = head.closest("table");
  const numbers = head.dataset.kind === "number";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.ariaSort = descending ? "descending" : "ascending";
  const value = (run) => run.rows[0].cells[head.cellIndex].dataset.value;
  const compare = (a, b) => numbers ? Number(a) - Number(b) : a.localeCompare(b);
  const order = [...table.tBodies].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // empty cells stay last
    return descending ? compare(y, x) : compare(x, y);
  });
  table.append(...order);
}

// ---- opening ----

function open(run, whether = details(run).hidden) {
  details(run).hidden = !whether;
  run.querySelector("button.open").ariaExpanded = String(whether);
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("thead th");
  const row = event.target.closest("tbody[data-method] > tr:first-child");
  if (head) sort(head);
  if (row && !String(getSelection())) open(row.parentElement); // not where someone marks text to copy it
  if (head || row) remember();
  for (const list of form.querySelectorAll(".choice[open]"))
    if (!list.contains(event.target)) list.open = false;
});

// ---- the address ----

function remember() {
  const state = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  const tables = [...document.querySelectorAll("section > .scroll > table")];
  for (const head of heads.filter((h) => h.ariaSort))
    state.append("sort", [tables.indexOf(head.closest("table")), head.cellIndex, head.ariaSort].join(" "));
  for (const run of runs) if (!details(run).hidden) state.append("open", run.dataset.run);
  history.replaceState(null, "", "#" + state);
}

function recall() {
  const tables = [...document.querySelectorAll("section > .scroll > table")];
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "open") for (const run of runs) if (run.dataset.run === value) open(run, true);
    if (name === "sort") {
      const [table, column, order] = value.split(" ");
      const head = tables[table]?.tHead.rows[0].cells[column];
      if (head) sort(head, order === "descending");
    }
    for (const field of form.querySelectorAll("input"))
      if (field.name === name && field.type === "checkbox") field.checked ||= field.value === value;
      else if (field.name === name) field.value = value;
  }
}

// ---- what was kept ----

// Only of runs that the filters show: a context without any of them is not offered.
function showKept(section) {
  const samples = JSON.parse(section.dataset.samples);
  const [sampleField, layersField] = section.querySelectorAll("select");
  const [asked, strips, context] = [".asked", ".strips", ".context"].map((name) => section.querySelector(name));
  const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
  sampleField.append(...samples.map((sample, i) => option(sample.name, i)));
  const keepsAll = (run) => !/[^9]/.test(Object.values(run.layers).join(""));
  const hidden = new Set();
  const offered = (sample) => sample.runs.some((run) => !hidden.has(run.id) && !keepsAll(run));
  let picked; // the id of the run whose kept tokens the context shows

  // The share of the KV heads of the chosen layers that kept each token, 0 to 1.
  const shares = (run) => {
    const rows = layersField.value ? [run.layers[layersField.value]] : Object.values(run.layers);
    return [...rows[0]].map((_, i) => rows.reduce((sum, row) => sum + Number(row[i]), 0) / rows.length / 9);
  };

  function drawStrip(canvas, values) {
    [canvas.width, canvas.height] = [values.length, 1];
    const painter = canvas.getContext("2d");
    values.forEach((share, i) => { painter.fillStyle = `rgba(0, 90, 160, ${share})`; painter.fillRect(i, 0, 1, 1); });
  }

  // Tokens that a right answer stands on, by the text of all of them.
  function answers(sample) {
    const text = sample.tokens.join("");
    const found = new Set();
    const ends = [];
    sample.tokens.reduce((end, token, i) => (ends[i] = end + token.length), 0);
    for (const answer of (sample.references ?? []).filter(Boolean))
      for (let at = text.indexOf(answer); at >= 0; at = text.indexOf(answer, at + 1))
        ends.forEach((end, i) => { if (end > at && end - sample.tokens[i].length < at + answer.length) found.add(i); });
    return found;
  }

  function draw() {
    hidden.clear();
    for (const run of runs) if (run.hidden) hidden.add(run.dataset.run);
    samples.forEach((sample, i) => { sampleField.options[i].disabled = !offered(sample); });
    section.hidden = !samples.some(offered);
    if (section.hidden) return;
    if (!offered(samples[sampleField.value])) sampleField.value = samples.findIndex(offered);
    const sample = samples[sampleField.value];
    const shown = sample.runs.filter((run) => !hidden.has(run.id));
    const chosen = shown.find((run) => run.id === picked) ?? shown.find((run) => !keepsAll(run));
    const groups = Object.keys(sample.runs[0].layers);
    if (layersField.options.length !== groups.length + 1) {
      layersField.replaceChildren(option("all", ""), ...groups.map((name) => option(name, name)));
    }
    asked.textContent = `${sample.question ?? ""} Expected: ${(sample.references ?? []).join(", ")}`;
    strips.replaceChildren(...shown.map((run) => {
      const line = document.createElement("button");
      const name = document.createElement("span");
      const canvas = document.createElement("canvas");
      const said = document.createElement("span");
      line.type = "button";
      line.ariaPressed = String(run === chosen);
      name.textContent = run.name;
      said.textContent = `${Math.round(100 * run.score)}: ${run.prediction}`;
      drawStrip(canvas, shares(run));
      line.append(name, canvas, said);
      line.addEventListener("click", () => { picked = run.id; draw(); });
      return line;
    }));
    const right = answers(sample);
    const kept = shares(chosen);
    context.replaceChildren(...sample.tokens.map((token, i) => {
      const piece = document.createElement(right.has(i) ? "mark" : "span");
      piece.textContent = token;
      piece.style.setProperty("--share", kept[i].toFixed(2));
      piece.title = `token ${i}: kept by ${Math.round(100 * kept[i])}% of the heads`;
      return piece;
    }));
  }
  section.addEventListener("change", draw);
  redrawKept.push(draw);
}

form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(() => { runs.forEach((run) => open(run, false)); filter(); }));
form.addEventListener("submit", (event) => event.preventDefault());
for (const section of document.querySelectorAll("#kept")) showKept(section);
recall();
filter();
