"use strict";
document.documentElement.classList.add("js");
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Colour scheme: follows the system until the button is used.
const theme = document.getElementById("theme");
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
nameTheme();

// One circuit at a time; the part of the address after # says which.
const circuits = all(".circuit");
function pick() {
  const wanted = circuits.find(one => `#${one.id}` === decodeURIComponent(location.hash)) || circuits.find(one => one.classList.contains("on")) || circuits[0];
  if (!wanted) return; // no circuit file was at hand
  circuits.forEach(one => one.classList.toggle("on", one === wanted));
  all(".prompts").forEach(one => one.classList.toggle("on", one.dataset.circuit === wanted.id));
  const member = /^(?:member|trial)-(.*)$/.exec(wanted.id)?.[1] ?? null;
  all(".pick a").forEach(link => link.getAttribute("href") === `#${wanted.id}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  all(".of-member").forEach(mark => mark.classList.toggle("on", mark.dataset.member === member));
  all(".charts").forEach(charts => charts.classList.toggle("none", member === null));
  all("tr[data-member]").forEach(row => row.classList.toggle("picked", row.dataset.member === member));
}
addEventListener("hashchange", pick);
addEventListener("popstate", pick);
pick();

// A circuit is chosen without leaving the place, unless what is chosen would be out of sight.
const shown = document.getElementById("shown");
function choose(hash) {
  history.pushState(null, "", hash);
  pick();
  const { top } = document.querySelector(hash).getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.7) shown.scrollIntoView();
}
addEventListener("click", event => {
  const link = event.target.closest("a[href]"), hash = link && link.getAttribute("href");
  if (!hash || !circuits.some(one => `#${one.id}` === hash) || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  choose(hash);
});

// Marks are small and fingers wide: the nearest one answers, and says what it is beneath the figure.
all(".marks figure, figure.marks").forEach(figure => {
  const marks = all(".of-member", figure), line = document.createElement("output");
  const title = mark => mark ? mark.querySelector("title").textContent : "";
  const distance = (mark, event) => { const b = mark.querySelector("use").getBoundingClientRect(); return Math.hypot(event.clientX - b.x - b.width / 2, event.clientY - b.y - b.height / 2); };
  const nearest = event => { const found = marks.map(mark => [distance(mark, event), mark]).sort((a, b) => a[0] - b[0])[0]; return found && found[0] < 24 ? found[1] : null; };
  line.className = "under"; figure.append(line);
  figure.addEventListener("pointermove", event => { const mark = nearest(event); line.textContent = title(mark); figure.classList.toggle("near", mark !== null); });
  figure.addEventListener("pointerleave", () => { line.textContent = ""; });
  figure.addEventListener("focusin", event => { line.textContent = title(event.target.closest(".of-member")); });
  // Where marks overlap, the one that was named is chosen and not the topmost; the keyboard (detail 0) follows its link.
  figure.addEventListener("click", event => {
    const mark = event.detail && !event.ctrlKey && !event.metaKey && !event.shiftKey ? nearest(event) : null;
    if (mark) { event.preventDefault(); event.stopPropagation(); choose(mark.querySelector("a").getAttribute("href")); }
  });
});

// Tables that can be sorted: the headings become buttons.
all("table.sortable").forEach(table => all("thead th", table).forEach((heading, column) => {
  const button = document.createElement("button");
  button.type = "button"; button.append(...heading.childNodes); heading.append(button);
  button.addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    all("th", heading.parentNode).forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => { const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent.trim(); return text === "" || isNaN(text) ? text : Number(text); };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    const rows = [...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b)) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  });
}));

// Neurons are read back from their images when a layer is opened: the category is in the alpha of a pixel.
function categories(image, alphas) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data, found = [];
  for (let at = 3; at < pixels.length; at += 4) found.push(alphas.indexOf(pixels[at]));
  return found;
}
async function explain(box) {
  const image = box.querySelector("img"), model = box.closest(".model"), layer = box.closest(".layer").dataset.layer;
  const names = model.dataset.names.split("|"), columns = Number(box.dataset.columns), rows = Number(box.dataset.rows);
  image.loading = "eager";
  await image.decode();
  const found = categories(image, model.dataset.alphas.split(",").map(Number));
  const name = at => box.dataset.what === "head" ? `${Math.floor(at / columns)}.${at % columns}` : String(at);
  const line = document.createElement("output"), list = document.createElement("details");
  line.className = "under"; list.className = "list";
  list.append(document.createElement("summary"));
  list.firstChild.textContent = box.dataset.what === "head" ? "Neurons as head.dimension" : "Neurons by number";
  names.slice(2).forEach((label, index) => {
    const places = found.flatMap((category, at) => category === index + 2 ? [name(at)] : []);
    if (!places.length) return;
    const text = document.createElement("p");
    text.tabIndex = 0; text.dataset.count = places.length;
    text.textContent = (names.length > 3 ? `${label} (${places.length}): ` : "") + places.join(", ");
    list.append(text);
  });
  const after = box.closest(".grid") || box;
  after.after(line, list);
  box.addEventListener("pointermove", event => {
    const place = box.getBoundingClientRect();
    const column = Math.min(columns - 1, Math.floor((event.clientX - place.left) / place.width * columns));
    const row = Math.min(rows - 1, Math.floor((event.clientY - place.top) / place.height * rows));
    const at = row * columns + column, what = box.dataset.what === "head" ? `L${layer}H${row}.${column}` : `L${layer}${box.dataset.what === "MLP neuron" ? "MLP" : "OUT"}.${at}`;
    line.textContent = found[at] > 0 ? `${what}: ${names[found[at]]}` : "";
  });
  box.addEventListener("pointerleave", () => { line.textContent = ""; });
}
all(".layer").forEach(layer => layer.addEventListener("toggle", () => {
  if (!layer.open || layer.dataset.read) return;
  layer.dataset.read = "yes";
  all(".pixels", layer).forEach(explain);
}));

// A button that copies a block of code; where the browser does not allow it, the code is selected.
all("pre.copy").forEach(block => {
  const button = document.createElement("button");
  button.type = "button"; button.className = "copier"; button.textContent = "Copy";
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(block);
    navigator.clipboard?.writeText(block.textContent).then(() => { button.textContent = "Copied"; }, () => {});
  });
  block.before(button);
});
