// Small helpers for the DOM. Nodes are reused, so that an hour of snapshots creates no garbage to speak of.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// el creates an element: el("p", { class: "hint" }, "text", otherNode).
export function el(tag, attrs = {}, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

// svg creates an SVG element.
export function svg(tag, attrs = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

function fill(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null && c !== ""));
  return node;
}

// text sets a node's text if it differs: an unchanged node costs no layout.
export function text(node, value) {
  value = String(value);
  if (node.textContent !== value) node.textContent = value;
}

// attr sets an attribute if it differs, and removes it for null and false.
export function attr(node, name, value) {
  if (value == null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const reduced = matchMedia("(prefers-reduced-motion: reduce)");
export const calm = () => reduced.matches;

// keyed makes parent's children match items: it creates, updates, moves and removes as few as possible. make(item)
// returns a node, update(node, item) fills it, and remove(node) removes it, now or later.
export function keyed(parent, items, keyOf, make, update, remove = (node) => node.remove()) {
  const nodes = (parent.keyedNodes ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of nodes) {
    if (wanted.has(key)) continue;
    nodes.delete(key);
    remove(node);
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = nodes.get(key);
    if (!node) nodes.set(key, (node = make(item)));
    while (next?.classList.contains("leaving")) next = next.nextElementSibling;
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
    update(node, item);
  }
}

const LEAVE_MS = 600; // .leaving in style.css takes less

// fadeOut removes a node after it has faded out, and then calls done. Without motion the node is gone at once, before anything is measured.
export function fadeOut(node, done) {
  if (calm()) {
    node.remove();
    return;
  }
  node.classList.add("leaving");
  node.inert = true;
  setTimeout(() => {
    node.remove();
    done();
  }, LEAVE_MS);
}

// SHAPES are the outlines of the marks, for the attribute d of a path.
export const SHAPES = {
  "http": "M0-5a5 5 0 1 0 .01 0z",
  "grpc": "M0-6.200L6.200 0 0 6.200-6.200 0z",
  "grpc-service": "M0-6L6 0 0 6-6 0z",
  "failed": "M-5-5L5 5M5-5L-5 5",
};

// glyph returns the mark of a way or of a failure, the same in the picture, the legend and the list.
export function glyph(kind) {
  return svg("svg", { class: "glyph", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { class: "mark " + kind, d: SHAPES[kind] ?? SHAPES.http }));
}

// announcer says things to screen readers, one at a time, a few seconds apart. What is said twice in a row is said once.
export function announcer(node, pauseMs = 1500) {
  const queue = [];
  let timer = 0;
  let last = "";
  const next = () => {
    timer = 0;
    const words = queue.shift();
    if (words === undefined) return;
    node.textContent = last = words;
    timer = setTimeout(next, pauseMs);
  };
  return (words) => {
    if (!words || words === (queue.at(-1) ?? last)) return;
    queue.push(words);
    if (queue.length > 5) queue.shift();
    if (!timer) next();
  };
}
