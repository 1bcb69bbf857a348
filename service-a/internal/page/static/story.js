// The list of recent calls, and the story of one of them.

import { attr, byId, el, glyph, keyed, text } from "./dom.js";
import { CLASSES, count, few, ms, shortPod, wayLabel, wayShort } from "./words.js";

const SHOWN = 10;  // rows
const NOTABLE = 4; // rows kept for calls that failed or were retried, which would otherwise pass unseen
const NOTABLE_MS = 30000;
const EVERY_MS = 1000;

const notable = (c) => c.class !== "ok" || c.call.attempts > 1;

export class Story {
  constructor(say) {
    this.say = say;
    this.calls = [];
    this.notable = [];
    this.order = 0;
    this.traceUrl = "";
    this.list = byId("calls");
    this.shownAt = 0;
    this.list.addEventListener("pointerenter", () => (this.held = true));
    this.list.addEventListener("pointerleave", () => (this.held = false));
  }

  // add keeps the calls of a snapshot, and shows the latest from time to time. The list stands still while it is used.
  add(calls, caller) {
    this.caller = caller;
    const now = performance.now();
    const sorted = [...calls].sort((a, b) => a.id - b.id); // a snapshot begins with the failures
    // service-a's clock may differ, and after its restart its ids begin again.
    for (const c of sorted) Object.assign(c, { seen: now, order: this.order++ });
    keep(this.calls, sorted, SHOWN + NOTABLE); // the notable ones among them have rows of their own
    keep(this.notable, sorted.filter(notable), NOTABLE);
    const held = this.held || this.list.contains(document.activeElement);
    text(byId("calls-hint"), held && this.calls.length > 0 ? "The list stands still while you use it." : "Choose a call to see how it went.");
    if (now - this.shownAt < EVERY_MS || held) return;
    this.shownAt = now;
    this.draw();
  }

  // clear drops the calls of another instance of service-a, also while the list stands still.
  clear() {
    this.calls = [];
    this.notable = [];
    this.shownAt = 0;
    this.draw();
  }

  // recentNotable returns the latest calls that failed or were retried.
  recentNotable() {
    return this.notable.filter((c) => performance.now() - c.seen < NOTABLE_MS);
  }

  draw() {
    const kept = this.recentNotable();
    const others = this.calls.filter((c) => !kept.includes(c)).slice(kept.length - SHOWN);
    const rows = [...kept, ...others].sort((a, b) => b.order - a.order);
    // Rows are reused by place, not by call.
    keyed(this.list, rows.map((call, i) => ({ call, i })), (r) => r.i, () => this.makeRow(), (node, r) => this.updateRow(node, r.call));
  }

  makeRow() {
    const button = el("button", { type: "button" }, el("span", { class: "time" }), el("span", { class: "kind" }), el("span", { class: "to" }), el("span", { class: "took" }), el("span", { class: "end" }));
    const row = el("li", {}, button);
    button.addEventListener("click", () => this.tell(row.call));
    return row;
  }

  updateRow(row, c) {
    row.call = c;
    const button = row.firstChild;
    const [time, kind, to, took, end] = button.children;
    text(time, clock(c.at));
    if (row.via !== c.via) {
      row.via = c.via;
      kind.replaceChildren(glyph(c.via), wayShort(c.via));
    }
    text(to, c.pod ? shortPod(c.pod) : "no pod");
    text(took, ms(c.call.durationMs));
    const n = c.call.attempts;
    text(end, (c.class === "ok" ? "ok" : "✕ " + c.class) + (n > 1 ? `, ${n} attempts` : ""));
    attr(end, "class", "end " + (c.class === "ok" ? (n > 1 ? "retried" : "ok") : "bad"));
    attr(button, "aria-current", c.order === this.told ? "true" : null);
  }

  // tell shows the story of a call.
  tell(c) {
    if (!c) return;
    this.told = c.order;
    for (const row of this.list.children) attr(row.firstChild, "aria-current", row.call?.order === c.order ? "true" : null);
    byId("story").replaceChildren(...tree(c, this.caller, this.traceUrl));
    this.say(`Story of a call over ${wayLabel(c.via)}: ${c.class === "ok" ? "succeeded" : "failed, class " + c.class} after ${ms(c.call.durationMs)}.`);
    // On a phone the story is below the list.
    const box = byId("story").parentElement.getBoundingClientRect();
    if (box.top > innerHeight * 0.9 || box.bottom < 0) byId("story").parentElement.scrollIntoView({ behavior: "auto", block: "nearest" });
  }
}

// keep appends more to list, and drops the oldest beyond n.
function keep(list, more, n) {
  list.push(...more);
  if (list.length > n) list.splice(0, list.length - n);
}

function tree(c, caller, traceUrl) {
  const call = c.call;
  const ok = c.class === "ok";
  const root = el("ul", { class: "tree" });
  const from = el("li", {}, line("service-a", caller || "", `calls over ${wayLabel(c.via)}, at ${clock(c.at)}`));
  root.append(from);
  const name = child(from, line("name", call.target));
  const addresses = call.addresses ?? [];
  const picked = { client: "service-a picks one for each call", network: "the network picks the pod behind it" }[call.balancedBy];
  const resolved = child(name, line(addresses.length === 1 ? "address" : "addresses", addresses.length ? few(addresses, 6) : "none", picked));
  call.tries.forEach((t, i) => {
    const last = i === call.tries.length - 1;
    const pod = t.pod || (last ? c.pod : "");
    const ok = t.class === "ok";
    const attempt = child(resolved, line(`attempt ${i + 1}`, t.peer || "no address", ms(t.durationMs), ok ? "ok" : "bad"));
    if (!ok) child(attempt, line("✕ " + t.class, "", t.reason || CLASSES[t.class]?.[0], "bad"));
    if (pod) child(attempt, line("pod", pod, ok ? "responded" : "", ok ? "ok" : ""));
  });

  const n = call.attempts;
  const parts = [root, el("p", { class: "verdict " + (ok ? "ok" : "bad") }, ok ? `It succeeded after ${ms(call.durationMs)}, with ${count(n, "attempt")}.` : `It failed after ${ms(call.durationMs)}, with ${count(n, "attempt")}. Class ${c.class}: ${CLASSES[c.class]?.[0] ?? "unknown"}.`)];
  if (!ok) {
    if (c.detail) parts.push(el("p", { class: "detail" }, c.detail));
    parts.push(el("p", { class: "advice" }, el("b", {}, "Check next: "), CLASSES[c.class]?.[1] ?? CLASSES.other[1]));
  } else if (n > 1) {
    parts.push(el("p", { class: "advice" }, "The caller saw no error: GetData is idempotent, so service-a may retry it."));
  }
  if (call.traceId) {
    const id = el("code", {}, call.traceId);
    parts.push(el("p", { class: "trace" }, "Trace ", traceUrl ? el("a", { href: traceUrl.replaceAll("{traceId}", encodeURIComponent(call.traceId)), target: "_blank", rel: "noopener noreferrer" }, id) : id));
  }
  return parts;
}

function child(item, content) {
  let list = item.querySelector(":scope > ul");
  if (!list) item.append((list = el("ul")));
  const node = el("li", {}, content);
  list.append(node);
  return node;
}

function line(label, value, note, kind = "") {
  return el("div", { class: "step " + kind }, el("span", { class: "what" }, label), value ? el("code", {}, value) : "", note ? el("span", { class: "note" }, note) : "");
}

function clock(at) {
  const d = new Date(at);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${Math.floor(d.getMilliseconds() / 100)}`;
}
