// The table of all pods and figures: what the picture shows, for those who read instead.

import { attr, byId, el, keyed, text } from "./dom.js";
import { showFaults } from "./faults.js";
import { errorCount, errorsText, faultText, ms, rate, stateText, wayShort } from "./words.js";

export class Table {
  constructor(press) {
    this.press = press;
  }

  // update fills the rows: one for each pod and way, and one for the calls of a way that reached no pod.
  update(m, faults) {
    const rows = [];
    for (const p of m.pods) {
      const used = Object.entries(p.via);
      for (const [via, figures] of used.length ? used : [["", null]]) rows.push({ key: `${p.name} ${via}`, pod: p, via, figures, first: via === (used[0]?.[0] ?? "") });
    }
    for (const w of m.ways) {
      const n = errorCount(w.unserved);
      if (n > 0) rows.push({ key: "none " + w.via, via: w.via, figures: { count: n, errors: w.unserved }, first: true });
    }
    attr(byId("rows").parentElement, "data-faults", faults);
    keyed(byId("rows"), rows, (r) => r.key, makeRow, (node, r) => this.updateRow(node, r, faults));
  }

  updateRow(node, { pod, via, figures, first }, faults) {
    const cells = node.children;
    // Further rows of a pod repeat its name for screen readers only.
    const about = pod ? [pod.name, [pod.zone, pod.node].filter(Boolean).join(", ") || "–", [stateText(pod.state), faultText(pod.fault)].filter(Boolean).join(", ")] : ["no pod", "–", "–"];
    about.forEach((words, i) => {
      text(cells[i].firstChild, words);
      attr(cells[i].firstChild, "class", first ? null : "unseen");
    });
    text(cells[3], via ? wayShort(via) : "–");
    text(cells[4], figures ? figures.count.toLocaleString("en") : "0");
    text(cells[5], figures?.rate !== undefined ? rate(figures.rate) : "–");
    text(cells[6], figures?.p50 !== undefined ? ms(figures.p50) : "–");
    text(cells[7], figures?.p99 !== undefined ? ms(figures.p99) : "–");
    text(cells[8], errorsText(figures?.errors) || "none");
    attr(cells[8], "class", errorsText(figures?.errors) ? "bad" : "");
    attr(node, "class", first ? "first" : "more");
    showFaults(cells[9], faults && first && pod?.pod, pod, this.press);
  }
}

function makeRow() {
  const row = el("tr", {}, el("th", { scope: "row" }, el("span")), el("td", {}, el("span")), el("td", {}, el("span")), el("td"));
  for (const kind of ["num", "num", "num", "num", "", "acts"]) row.append(el("td", { class: kind }));
  return row;
}
