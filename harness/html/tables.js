"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function recordLink(number, text) {
  const path = data.records[number];
  const href = data.link + path.split("/").map(encodeURIComponent).join("/");
  return element("a", { href, title: path }, text);
}

/* Numbers before words; what is missing comes last in either order. */
function compareKeys(a, b, sign) {
  const missing = (a === null || a === "") - (b === null || b === "");
  if (missing) return missing;
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function keyOf(cell) {
  if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
  if (cell.classList.contains("number")) return null;
  return cell.textContent.trim();
}

function nextOrder(heading) {
  const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  return order === "ascending" ? 1 : -1;
}

function makeSortable(table) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading || !event.target.closest("button")) return;
    const sign = nextOrder(heading);
    const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row.cells[heading.cellIndex]), row]);
    rows.sort((a, b) => compareKeys(a[0], b[0], sign));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}

function matches(text, asked) {
  const found = text.toLowerCase();
  return asked.toLowerCase().split(/\s+/).every((word) => found.includes(word));
}

/* Columns that no row that is shown has anything in. */
function hideEmptyColumns(table) {
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
  [...table.tHead.rows[0].cells].forEach((heading, i) => {
    const empty = i > 0 && rows.length > 0 && rows.every((row) => row.cells[i].querySelector(".nothing"));
    heading.hidden = empty;
    for (const row of table.tBodies[0].rows) row.cells[i].hidden = empty;
  });
}

function makeFiltered(controls) {
  const table = document.getElementById(controls.dataset.filter);
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent]);
  const search = controls.querySelector("input");
  const selects = [...controls.querySelectorAll("select")];
  const filter = () => {
    let shown = 0;
    for (const [row, text] of rows) {
      const kept = matches(text, search.value.trim())
        && selects.every((one) => !one.value || row.dataset[one.dataset.key] === one.value);
      row.hidden = !kept;
      shown += kept;
    }
    controls.querySelector("output").textContent = `${shown} of ${rows.length} runs`;
    hideEmptyColumns(table);
  };
  controls.addEventListener("input", filter);
  filter();
}

/* columns: [title, row -> text or element, row -> what it is sorted by, class of its cells] */
function tableOf(columns, rows) {
  const head = element("tr", {}, ...columns.map(([title]) => {
    return element("th", { scope: "col" }, element("button", { type: "button" }, title));
  }));
  const body = element("tbody", {}, ...rows.map((row) => {
    return element("tr", {}, ...columns.map(([, show, key, style]) => {
      const value = show(row);
      const cell = element("td", { className: style ? style(row) : "" }, value ?? "–");
      const order = key ? key(row) : null;
      if (typeof order === "number") cell.dataset.sort = order;
      return cell;
    }));
  }));
  const table = element("table", { className: "sortable" }, element("thead", {}, head), body);
  makeSortable(table);
  return table;
}

const PAGE = 60; /* rows at once: more would make a phone slow */
const [MODEL, RUN, WHAT, ENGINE, PATH, VALUE, SORT, INTERVAL, VERDICT, SAMPLES, RECORD] = Array(11).keys();
const COLUMNS = [
  ["Run", RUN], ["Model", MODEL], ["What", WHAT], ["Value", VALUE, SORT], ["95% interval", INTERVAL],
  ["Path", PATH], ["Engine", ENGINE], ["Verdict against dense", VERDICT], ["Samples", SAMPLES, SAMPLES],
];

function measurements(place) {
  const search = place.querySelector("input");
  const more = place.querySelector("[data-more]");
  const rows = data.measurements.map((row) => [row, row.slice(0, SORT).concat(row[VERDICT]).join(" ")]);
  let found = rows, shown = PAGE, order = null, sign = 1;
  const head = element("tr", {}, ...COLUMNS.map(([title]) => {
    return element("th", { scope: "col" }, element("button", { type: "button" }, title));
  }));
  const body = element("tbody");
  place.querySelector(".scroll").append(element("table", {}, element("thead", {}, head), body));
  const draw = () => {
    body.replaceChildren(...found.slice(0, shown).map(([row]) => {
      return element("tr", {}, ...COLUMNS.map(([, index]) => {
        const number = index === VALUE;
        return element("td", { className: number ? "number" : "" },
          number ? recordLink(row[RECORD], row[index]) : String(row[index] || "–"));
      }));
    }));
    place.querySelector("output").textContent =
      `${Math.min(shown, found.length)} of ${found.length} measurements`;
    more.hidden = shown >= found.length;
  };
  const choose = () => {
    found = rows.filter(([, text]) => matches(text, search.value.trim()));
    if (order !== null) found.sort((a, b) => compareKeys(a[0][order], b[0][order], sign));
    draw();
  };
  search.addEventListener("input", () => { shown = PAGE; choose(); });
  more.addEventListener("click", () => { shown += 5 * PAGE; draw(); });
  head.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading) return;
    sign = nextOrder(heading);
    order = COLUMNS[heading.cellIndex].at(-1);
    choose();
  });
  draw();
}

function flips(place) {
  const runs = place.querySelector("[data-of=run]");
  const right = place.querySelector("[data-of=right]");
  if (!data.flipped.length) {
    place.querySelector(".choices").hidden = true;
    place.querySelector(".lacking").hidden = false;
    return;
  }
  runs.append(...data.flipped.map((one, i) => new Option(one.run, i)));
  const answer = (index, margin) => {
    if (index === null) return "not recorded";
    return `answer ${index + 1}` + (margin === null ? "" : `, by ${margin} nats`);
  };
  const draw = () => {
    const one = data.flipped[runs.value];
    const rows = one.flips.filter((flip) => !right.value || flip[6] === right.value);
    const asked = one.flips.some((flip) => flip[7]) ? [["What was asked", (flip) => flip[7] || "–"]] : [];
    const table = tableOf([
      ["Task", (flip) => flip[0]],
      ["Question", (flip) => String(flip[1] + 1), (flip) => flip[1]],
      ["Outcome", (flip) => (flip[6] === "ours" ? "won" : "lost"), null, (flip) => (flip[6] === "ours" ? "won" : "lost")],
      ["The dense model said", (flip) => answer(flip[2], flip[4]), (flip) => flip[4]],
      ["This run said", (flip) => answer(flip[3], flip[5]), (flip) => flip[5]],
      ...asked,
    ], rows);
    place.querySelector(".scroll").replaceChildren(table);
    const count = (word) => one.flips.filter((flip) => flip[6] === word).length;
    place.querySelector("output").replaceChildren(
      `${count("dense")} lost, ${count("ours")} won against `, recordLink(one.dense_record, one.dense),
      "; ", recordLink(one.record, "record of this run"));
  };
  place.addEventListener("change", draw);
  draw();
}

for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
for (const controls of document.querySelectorAll("[data-filter]")) makeFiltered(controls);
for (const place of document.querySelectorAll("[data-measurements]")) measurements(place);
for (const place of document.querySelectorAll("[data-flips]")) flips(place);
