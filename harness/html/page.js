
/* What every drawing looks like: colours are those of the page's style. */
function configOf(width) {
  const text = { labelColor: "var(--muted)", titleColor: "var(--ink)", labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: 550 };
  return {
    background: null,
    aria: false,
    font: "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif",
    view: { stroke: null },
    axis: { ...text, gridColor: "var(--line)", gridOpacity: 0.7, domainColor: "var(--muted)", tickColor: "var(--line)", titlePadding: 8 },
    axisY: { labelLimit: Math.min(240, 0.42 * width), titleLimit: 360 },
    axisX: { titleLimit: width, labelFlush: false },
    legend: {
      ...text, labelLimit: 260, symbolSize: 70, symbolOpacity: 1, layout: { bottom: { anchor: "middle" } },
      ...(width < 600 ? { orient: "bottom", direction: "vertical", columns: 1 } : { orient: "top", direction: "horizontal", columns: 8 }),
    },
    text: { font: "system-ui, sans-serif" },
  };
}

/* The words that a choice puts into a specification. */
function worded(spec, words) {
  return JSON.parse(JSON.stringify(spec, (key, value) => {
    const put = typeof value === "string" && value.startsWith("@") ? (words[value.slice(1)] ?? "") : value;
    if (put?.type !== "@scale" || words.scale !== "log") return put;
    const { zero, ...rest } = put; /* a logarithm has none */
    return rest;
  }));
}

/* In pixels: Vega-Lite warns of heights by step beside a width that fits its place. */
function heightOf(spec, rows) {
  const { field } = (spec.layer?.[0] ?? spec).encoding.y;
  return spec.height.step * new Set(rows.map((row) => row[field])).size;
}

const TOOLTIP = { disableDefaultStyle: true };
const ERRORS = 1; /* of Vega, whose warnings are for who writes specifications */

async function draw(place, spec, rows, words) {
  const width = place.clientWidth;
  const whole = {
    ...worded(spec, words),
    width: "container",
    data: { values: rows },
  };
  if (whole.height.step) whole.height = heightOf(whole, rows);
  place.view?.finalize();
  const options = { actions: false, renderer: "svg", config: configOf(width), tooltip: TOOLTIP, logLevel: ERRORS };
  const { ariaLabel } = place;
  const { view } = await vegaEmbed(place, whole, options);
  Object.assign(place, { role: "img", ariaLabel }); /* Vega puts words of its own there */
  place.removeAttribute("aria-roledescription");
  place.view = view;
  place.dataset.drawn = rows.length;
}

const HIDDEN = new Set(["of", "who", "on", "order", "front", "place", "kind", "low", "high", "x_low", "x_high"]);

/* The rows of a figure for those who do not see it. */
function asTable(details, rows) {
  const fill = () => {
    if (!details.open) return;
    const named = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => !HIDDEN.has(key));
    const columns = named.map((key) => [
      key,
      (row) => (key === "record" ? recordLink(row[key], "record") : String(row[key] ?? "–")),
      (row) => row[key],
    ]);
    details.querySelector(".scroll").replaceChildren(tableOf(columns, rows));
  };
  details.ontoggle = fill;
  fill();
}

/* Rows as objects; what is not there stays out. */
function unpacked({ names, said, words, values }) {
  const isSaid = names.map((name) => said.includes(name));
  return values.map((row) => Object.fromEntries(names
    .map((name, i) => [name, isSaid[i] && row[i] !== null ? words[row[i]] : row[i]])
    .filter(([, value]) => value !== null)));
}

/* The names of the points on the front, in their order. */
function nameFront(list, rows) {
  const front = rows.filter((row) => row.front).sort((a, b) => a.place - b.place);
  list.hidden = !front.length;
  list.replaceChildren(...front.map((row) => {
    return element("li", { value: row.place }, recordLink(row.record, row.run), ` ${row.said}`);
  }));
}

function figure(place) {
  const name = place.dataset.figure;
  const { choices } = data.figures[name];
  const rows = unpacked(data.figures[name]);
  const selects = [...place.querySelectorAll("select")];
  const redraw = () => {
    narrow(rows, choices, selects);
    let chosen = rows;
    let words = {};
    choices.forEach((choice, i) => {
      chosen = chosen.filter((row) => row[choice.field] === selects[i].value);
      words = { ...words, ...choice.options.find((option) => option.value === selects[i].value).words };
    });
    asTable(place.querySelector("details"), chosen);
    nameFront(place.querySelector(".front"), chosen);
    return draw(place.querySelector(".plot"), data.specs[name], chosen, words);
  };
  place.addEventListener("change", redraw);
  return redraw;
}

/* An option is disabled where the choices before it leave it no row. */
function narrow(rows, choices, selects) {
  let left = rows;
  choices.forEach((choice, i) => {
    const has = new Set(left.map((row) => row[choice.field]));
    for (const option of selects[i].options) option.disabled = !has.has(option.value);
    if (!has.has(selects[i].value)) selects[i].value = [...has][0];
    left = left.filter((row) => row[choice.field] === selects[i].value);
  });
}

function heatMap(place) {
  const selects = Object.fromEntries([...place.querySelectorAll("select")].map((one) => [one.dataset.of, one]));
  const several = new Set(data.layers.map((grid) => grid.model)).size > 1;
  const label = (grid) => grid.run + (several ? ` (${grid.model})` : "");
  const like = (a, b) => a.model === b.model && a.linears.join() === b.linears.join();
  const options = () => data.layers.map((grid, i) => new Option(label(grid), i));
  selects.first.append(...options());
  selects.second.append(...options());
  const [first, second] = openingPair();
  selects.first.value = first;
  selects.second.value = second;
  const redraw = async () => {
    const a = data.layers[selects.first.value];
    for (const option of selects.second.options) option.disabled = !like(a, data.layers[option.value]);
    if (!like(a, data.layers[selects.second.value])) selects.second.value = selects.first.value;
    const b = data.layers[selects.second.value];
    const metric = selects.metric.value;
    const values = [a.values[metric], b.values[metric]];
    const between = values[1].map((row, i) => row.map((value, j) => {
      const other = values[0][i][j];
      return value === null || other === null ? null : Number((value - other).toPrecision(3));
    }));
    const cells = (grid) => a.linears.flatMap((linear, i) => {
      return grid[i].map((value, block) => ({ linear: linear.replace(/^.*\./, ""), block, value }));
    });
    const known = values.flat(2).filter((value) => value !== null);
    const domain = [Math.min(...known), Math.max(...known)];
    const names = { first: a.run, second: b.run, difference: "second minus first" };
    for (const [which, text] of Object.entries(names)) place.querySelector(`[data-name=${which}]`).textContent = text;
    const spec = structuredClone(data.specs.values);
    if (known.length) spec.encoding.color.scale.domain = domain;
    const words = { y: data.metrics[metric] };
    asTable(place.querySelector("details"), layerRows(a, b, metric));
    await draw(place.querySelector("[data-plot=first]"), spec, cells(values[0]), words);
    await draw(place.querySelector("[data-plot=second]"), spec, cells(values[1]), words);
    await draw(place.querySelector("[data-plot=difference]"), data.specs.difference, cells(between), { y: "Difference" });
  };
  place.addEventListener("change", redraw);
  return redraw;
}

function openingPair() {
  const found = data.layers.findIndex((one, i) => data.layers.slice(i + 1).some((other) => one.model === other.model));
  if (found < 0) return [0, 0];
  return [found, data.layers.findIndex((other, i) => i > found && other.model === data.layers[found].model)];
}

function layerRows(a, b, metric) {
  return a.linears.flatMap((linear, i) => a.values[metric][i].map((value, block) => {
    return { block, linear, [a.run]: value, [b.run + (a === b ? " again" : "")]: b.values[metric][i][block] };
  }));
}

const drawings = [...document.querySelectorAll("[data-figure], [data-heat]")].map((place) => {
  return [place, "heat" in place.dataset ? heatMap(place) : figure(place)];
});

/* What is seen first is drawn first, and the rest while nothing else is to be done. */
async function drawAll() {
  for (const [, redraw] of drawings) {
    await new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go, { timeout: 200 }) : setTimeout(go)));
    await redraw();
  }
  document.documentElement.dataset.drawn = "all";
}

let width = window.innerWidth;
let waiting = null;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return; /* a phone's bars come and go */
  width = window.innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(drawAll, 150);
});
drawAll();
