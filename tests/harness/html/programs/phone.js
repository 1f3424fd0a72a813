const parts = all("main > section, figure, .choices, .plot, h1, h2, p");
const wide = parts.filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className || e.tagName);
const named = (e) => e.ariaLabel || e.getAttribute("aria-labelledby");
const unnamed = [
  ...all("select, input").filter((e) => !e.closest("label")),
  ...all(".plot").filter((e) => e.getAttribute("role") !== "img" || !e.ariaLabel),
  ...all(".scroll").filter((e) => e.tabIndex !== 0 || !named(e)),
  ...all("thead th").filter((e) => !e.querySelector("button")),
].map((e) => e.outerHTML.slice(0, 80));
one("#runs-table thead button").focus();
return {
  width: innerWidth,
  page: document.documentElement.scrollWidth,
  wide,
  unnamed,
  focused: document.activeElement.textContent,
  language: document.documentElement.lang,
};
