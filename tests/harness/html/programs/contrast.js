const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = (text) => {
  const [r, g, b] = text.match(/[0-9.]+/g).map((c) => channel(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!colour.startsWith("rgba")) return colour;
  }
  return "rgb(255, 255, 255)";
};
const words = "p, dt, dd, a, .verdict, .interval, .how, th button, figcaption, summary, output, td";
return all(words).filter((e) => e.textContent.trim()).map((e) => {
  const [more, less] = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
  return [(more + 0.05) / (less + 0.05), e.className || e.tagName];
}).filter(([ratio]) => ratio < 4.5);
