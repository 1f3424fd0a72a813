const names = () => all("#runs-table tbody tr").filter((row) => !row.hidden)
  .map((row) => row.querySelector("a").textContent);
const drawn = "svg .mark-symbol path, svg .mark-rect path";
const marks = all("[data-figure]").map((one) => [one.dataset.figure, one.querySelectorAll(drawn).length]);
const heats = all("[data-plot]").map((plot) => plot.querySelectorAll(".mark-rect.role-mark path").length);
const bits = all("#runs-table thead button")[1];
bits.click();
const up = [names(), bits.parentElement.getAttribute("aria-sort")];
bits.click();
const down = [names(), bits.parentElement.getAttribute("aria-sort")];
const search = one("[data-filter] input");
search.value = "WANDA 2:4";
search.dispatchEvent(new Event("input", { bubbles: true }));
const filtered = [names(), one("[data-filter] output").textContent];
const measured = one("[data-measurements]");
measured.querySelector("input").value = "rtn decode faster";
measured.querySelector("input").dispatchEvent(new Event("input", { bubbles: true }));
const kept = [...measured.querySelectorAll("tbody tr")].map((row) => row.textContent);
const point = one("[data-figure=bits] svg .mark-symbol.role-mark path");
const at = point.getBoundingClientRect();
for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"]) {
  const where = { bubbles: true, clientX: at.x + 2, clientY: at.y + 2 };
  point.dispatchEvent(new MouseEvent(kind, where));
}
await pause(50);
const told = one("#vg-tooltip-element.visible")?.textContent;
return { marks, heats, up, down, filtered, kept, told };
