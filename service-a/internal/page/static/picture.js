// The picture: service-a, the names it calls, and the pods behind them. Boxes are HTML, laid out by CSS; the lines between
// them, and the dots that travel on the lines (dots.js), are SVG over the same area.

import { attr, byId, el, glyph, keyed, svg, text } from "./dom.js";
import { hostOf, zones } from "./model.js";
import { count, errorsText, faultText, isDelay, ms, rate, shortPod, wayShort } from "./words.js";

const ROWS = 6;   // up to so many pods are rows with all figures and buttons
const TILES = 24; // up to so many are tiles with their main figures; more are small
const LEAVE_MS = 600;

const STATES = { ready: "ready", notReady: "not ready", gone: "gone" };

export const FAULTS = [
  { id: "slow", label: "Slow", fault: { latency: "300ms" }, on: (f) => isDelay(f?.latency), done: "is slow now" },
  { id: "failing", label: "Failing", fault: { errorRate: 0.5 }, on: (f) => f?.errorRate > 0, done: "fails now" },
  { id: "notReady", label: "Not ready", fault: { notReady: true }, on: (f) => Boolean(f?.notReady), done: "is not ready now" },
  { id: "heal", label: "Heal", fault: null, on: () => false, done: "is healed" },
];

// faultButtons returns the buttons of one pod's fault switch. press(pod, fault) is called with the pod's name.
export function faultButtons(press) {
  const group = el("div", { class: "faults", role: "group" });
  for (const f of FAULTS) {
    const button = el("button", { type: "button", class: f.id }, f.label);
    button.addEventListener("click", () => press(group.pod, f));
    group.append(button);
  }
  return group;
}

export function updateFaultButtons(group, pod) {
  group.pod = pod.pod;
  attr(group, "aria-label", "Fault of " + pod.name);
  FAULTS.forEach((f, i) => {
    const button = group.children[i];
    button.disabled = !pod.pod || pod.state === "gone";
    if (f.fault) attr(button, "aria-pressed", f.on(pod.fault));
  });
}

export class Picture {
  // press is called for a button of a pod's fault switch.
  constructor(press) {
    this.press = press;
    this.root = byId("picture");
    this.lines = byId("lines");
    this.places = new Map(); // where lines and dots start and end, by name
    this.size = "";
    new ResizeObserver(() => this.measure()).observe(this.root);
    // A pod that moves in or out shifts the others for a moment.
    this.root.addEventListener("animationend", () => this.measure());
  }

  // update draws a model. via is the chosen way, faults says whether pods have a fault switch.
  update(m, via, faults) {
    this.model = m;
    this.via = via;
    const size = m.pods.length <= ROWS ? "rows" : m.pods.length <= TILES ? "tiles" : "dense";
    if (size !== this.size) {
      this.size = size;
      attr(this.root, "data-size", size);
    }
    this.total = m.pods.reduce((most, p) => Math.max(most, p.calls), 0);
    keyed(byId("names"), m.ways, (w) => w.via, makeName, (node, w) => updateName(node, w, via));
    keyed(byId("zones"), zones(m.pods), (z) => "zone " + z.zone, makeZone, (node, z) => {
      text(node.querySelector("h3"), z.zone || "no zone");
      node.classList.toggle("nameless", !z.zone);
      keyed(node.querySelector(".nodes"), z.nodes, (n) => "node " + n.node, makeNode, (at, n) => {
        text(at.querySelector("h4"), n.node);
        at.classList.toggle("nameless", !n.node);
        keyed(at.querySelector(".pods"), n.pods, (p) => p.key, () => this.makePod(), (tile, p) => this.updatePod(tile, p, faults), LEAVE_MS);
      });
    }, LEAVE_MS);
    if (m.pods.length === 0 !== Boolean(this.empty)) {
      this.empty?.remove();
      this.empty = m.pods.length === 0 ? el("p", { class: "nobody" }, "No pod of service-b is known yet.") : null;
      if (this.empty) byId("zones").append(this.empty);
    }
    const shape = size + m.ways.map((w) => w.via + w.addresses.length) + m.pods.map((p) => p.key + p.state + Object.keys(p.via));
    if (shape !== this.shape) {
      this.shape = shape;
      this.measure();
    } else {
      this.draw();
    }
  }

  makePod() {
    const tile = el("div", { class: "pod" },
      el("div", { class: "who" }, el("span", { class: "lamp", "aria-hidden": "true" }), el("strong"), el("span", { class: "state" }), el("span", { class: "fault" })),
      el("ul", { class: "figures" }),
      el("div", { class: "bar", "aria-hidden": "true" }));
    tile.parts = Object.fromEntries(["strong", ".state", ".fault", ".figures", ".bar"].map((s) => [s, tile.querySelector(s)]));
    return tile;
  }

  updatePod(tile, pod, faults) {
    const { strong, ".state": state, ".fault": fault, ".figures": figures, ".bar": bar } = tile.parts;
    attr(tile, "data-state", pod.state);
    attr(tile, "data-key", pod.key);
    attr(tile, "title", [pod.name, pod.ip, STATES[pod.state] ?? pod.state, count(pod.calls, "call")].filter(Boolean).join(" · "));
    text(strong, pod.pod ? (this.size === "dense" ? shortPod(pod.pod).replace("…", "") : shortPod(pod.pod)) : pod.ip);
    text(state, pod.pod ? STATES[pod.state] ?? pod.state : "no call yet");
    text(fault, faultText(pod.fault));
    tile.classList.toggle("faulty", Boolean(fault.textContent));
    tile.classList.toggle("erring", pod.errors > 0);
    const used = Object.entries(pod.via).filter(([, f]) => f.count > 0);
    keyed(figures, used, ([via]) => via, ([via]) => makeFigures(via), (node, [, f]) => updateFigures(node, f));
    keyed(bar, used, ([via]) => via, ([via]) => el("i", { class: via }), (node, [, f]) => {
      node.style.width = (100 * f.count) / Math.max(this.total, 1) + "%";
    });
    if (faults && this.size === "rows" && pod.pod && !tile.parts.faults) tile.append((tile.parts.faults = faultButtons(this.press)));
    if (tile.parts.faults) {
      if (faults && this.size === "rows") updateFaultButtons(tile.parts.faults, pod);
      else {
        tile.parts.faults.remove();
        tile.parts.faults = null;
      }
    }
  }

  // measure finds where the boxes are, and draws the lines again.
  measure() {
    if (!this.model) return;
    const frame = this.root.getBoundingClientRect();
    if (frame.width === 0) return;
    this.upright = getComputedStyle(this.root).getPropertyValue("--upright").trim() === "1";
    for (const layer of [this.lines, byId("dots")]) {
      attr(layer, "viewBox", `0 0 ${Math.round(frame.width)} ${Math.round(frame.height)}`);
    }
    const box = (node) => {
      const b = node.getBoundingClientRect();
      return { left: b.left - frame.left, right: b.right - frame.left, top: b.top - frame.top, bottom: b.bottom - frame.top };
    };
    this.places.clear();
    this.places.set("caller", box(byId("caller")));
    for (const node of this.root.querySelectorAll(".name")) this.places.set("name " + node.dataset.via, box(node));
    for (const node of this.root.querySelectorAll(".pod:not(.leaving)")) this.places.set("pod " + node.dataset.key, box(node));
    for (const node of this.root.querySelectorAll(".zone:not(.leaving) .node")) {
      node.groupKey = "group " + node.querySelector(".pod")?.dataset.key;
      this.places.set(node.groupKey, box(node));
    }
    const area = box(byId("zones"));
    this.gutter = area.left + 8;
    this.top = area.top;
    this.draw();
  }

  // curve returns the points of the cubic curves from one place to another, each of which begins where the one before it
  // ends; or null if a place is not there.
  curve(from, to) {
    const a = this.places.get(from);
    const b = this.places.get(to);
    if (!a || !b) return null;
    const middle = (p) => [(p.left + p.right) / 2, (p.top + p.bottom) / 2];
    if (!this.upright) {
      const [x1, y1, x2, y2] = [a.right, middle(a)[1], b.left, middle(b)[1]];
      const bend = (x2 - x1) * 0.5;
      return [x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2];
    }
    const [x1, y1] = [middle(a)[0], a.bottom];
    if (from === "caller") {
      const [x2, y2] = [middle(b)[0], b.top];
      const bend = (y2 - y1) * 0.5;
      return [x1, y1, x1, y1 + bend, x2, y2 - bend, x2, y2];
    }
    // To the gutter at the left of the pods, down, and then to the pod.
    const [x2, y2] = [b.left, middle(b)[1]];
    const [g, top, low] = [this.gutter, Math.min(this.top + 8, y2 - 12), y2 - 12];
    return [x1, y1, x1, y1 + 22, g, top - 26, g, top, g, top, g, low, g, low, g, y2, g, y2, x2, y2];
  }

  // draw updates the lines: their width is the share of the calls.
  draw() {
    const m = this.model;
    const lines = [];
    const all = Math.max(m.ways.reduce((n, w) => n + w.rate, 0), 0.001);
    for (const w of m.ways) {
      const name = "name " + w.via;
      lines.push({ from: "caller", to: name, via: w.via, share: w.rate / all, chosen: w.via === this.via });
      if (this.size === "dense") {
        for (const [group, pods] of this.groups(m.pods)) {
          const calls = pods.reduce((n, p) => n + (p.via[w.via]?.rate ?? 0), 0);
          if (calls > 0) lines.push({ from: name, to: group, via: w.via, share: calls / all });
        }
        continue;
      }
      for (const p of m.pods) {
        const share = (p.via[w.via]?.rate ?? 0) / all;
        const known = w.via === this.via && p.state !== "gone" && w.addresses.some((a) => hostOf(a) === p.ip);
        if (share > 0 || known) lines.push({ from: name, to: "pod " + p.key, via: w.via, share });
      }
    }
    keyed(this.lines, lines.filter((l) => this.curve(l.from, l.to)), (l) => l.from + ">" + l.to, () => svg("path"), (path, l) => {
      const c = this.curve(l.from, l.to).map((v) => Math.round(v * 10) / 10);
      attr(path, "d", `M${c[0]} ${c[1]}C${c.slice(2).join(" ")}`); // SVG takes several curves after one C
      attr(path, "class", ["line", l.via, l.share > 0 ? "busy" : "", l.chosen ? "chosen" : ""].filter(Boolean).join(" "));
      path.style.strokeWidth = l.share > 0 ? (1.5 + 5 * l.share).toFixed(1) + "px" : "";
    });
  }

  // groups yields the place of each node's box with the pods on it.
  *groups(pods) {
    for (const z of zones(pods)) for (const n of z.nodes) yield ["group " + n.pods[0].key, n.pods];
  }
}

function makeName(w) {
  return el("div", { class: "box name " + w.via, "data-via": w.via },
    el("strong", {}, glyph(w.via), el("span", {}, wayShort(w.via))), el("code"), el("span", { class: "addresses" }), el("span", { class: "rest" }), el("span", { class: "by" }));
}

function updateName(node, w, via) {
  const [, target, addresses, rest, by] = node.children;
  const n = w.addresses.length;
  text(target, w.target);
  attr(node, "title", w.target);
  text(addresses, n === 0 ? "no address" : n === 1 ? "1 address" : `${n} addresses`);
  text(rest, n <= 3 ? w.addresses.map(hostOf).join(", ") : "");
  text(by, w.balancedBy === "client" ? "service-a picks a pod per call" : w.balancedBy === "network" ? "the network picks a pod per connection" : "");
  node.classList.toggle("chosen", w.via === via);
  node.classList.toggle("missing", n === 0);
}

const makeZone = () => el("section", { class: "zone" }, el("h3"), el("div", { class: "nodes" }));
const makeNode = () => el("div", { class: "node" }, el("h4"), el("div", { class: "pods" }));

function makeFigures(via) {
  return el("li", { class: via }, glyph(via), el("span", { class: "unseen" }, wayShort(via) + ": "), el("b"), " ", el("span", { class: "rate" }), " ", el("span", { class: "times" }), " ", el("span", { class: "bad" }));
}

function updateFigures(node, f) {
  const [, , n, perSecond, times, bad] = node.children;
  text(n, f.count.toLocaleString("en"));
  text(perSecond, rate(f.rate) + "/s");
  text(times, `p50 ${ms(f.p50)} · p99 ${ms(f.p99)}`);
  const errors = errorsText(f.errors);
  text(bad, errors && "✕ " + errors);
}

