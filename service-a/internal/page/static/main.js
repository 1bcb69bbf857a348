// The page: connects to service-a, and passes each snapshot to the picture, the lesson, the calls and the table.

import { announcer, attr, byId, el, glyph, text } from "./dom.js";
import { Dots } from "./dots.js";
import { setFault } from "./faults.js";
import { lessons } from "./lesson.js";
import { connect } from "./live.js";
import { Load } from "./load.js";
import { model } from "./model.js";
import { Picture } from "./picture.js";
import { Story } from "./story.js";
import { Table } from "./table.js";
import { WAYS, count, errorsText, few, list, shortPod, stateText, unbroken, wayLabel, wayShort } from "./words.js";

const RATES = [0, 5, 20, 50, 100];
const DRAW_TABLE_MS = 1000;

const say = announcer(byId("status"));
const load = new Load((why) => text(byId("outcome"), why));
const picture = new Picture(press);
const dots = new Dots(picture);
const story = new Story(say);
const table = new Table(press);

let faults = false;
let latest = null;
let caller = "";
let tableAt = 0;

load.reconnect = connect({ hello, snapshot, burst: (outcome) => load.burstDone(outcome), state });
controls();

function hello(h) {
  faults = Boolean(h.faults);
  story.traceUrl = /^https?:\/\//.test(h.traceUrl ?? "") ? h.traceUrl : "";
  const me = h.servedBy ?? {};
  const before = caller;
  caller = me.pod ?? "";
  if (before && before !== caller) forget();
  text(byId("caller-pod"), caller && caller !== "service-a" ? shortPod(caller) : "");
  attr(byId("caller"), "title", caller);
  text(byId("served-by"), [caller, me.namespace, me.node, me.zone, me.version && "version " + me.version].filter(Boolean).join(" · "));
  text(byId("table-hint"), `Per pod and way, over the last ${h.windowSeconds ?? 30} seconds.`);
  drawWays((h.ways ?? []).map((w) => w.via));
  if (h.noLoad) load.noLoad(h.noLoad);
}

// forget drops what the page shows of the instance of service-a that it was connected to before.
function forget() {
  latest = null;
  tableAt = 0;
  shown = seen = "";
  story.clear();
  const words = unbroken(`Another instance of service-a makes the calls now: ${shortPod(caller)}.`);
  text(byId("lesson"), words);
  text(byId("outcome"), words); // it stays when the first snapshot replaces the lesson
  say(words);
  text(byId("lesson-more"), "");
}

function snapshot(s) {
  const m = model(s);
  const known = latest;
  latest = m;
  story.add(m.calls, caller);
  draw();
  const per = dots.add(m);
  text(byId("scale"), per > 1.05 ? `Each mark is about ${Math.round(per * 10) / 10} calls.` : "Each mark is a call.");
  if (known) announce(known, m);
}

function draw() {
  picture.update(latest, load.via, faults);
  tell(lessons(latest, story.recentNotable()));
  const now = performance.now();
  if (now - tableAt < DRAW_TABLE_MS) return;
  tableAt = now;
  table.update(latest, faults);
}

function state(value) {
  const link = byId("link");
  if (link.dataset.state === value) return;
  if (value === "lost") say("The connection to service-a is lost. The page tries again.");
  else if (link.dataset.state === "lost") say("Connected to service-a again.");
  link.dataset.state = value;
  text(link, value === "live" ? "live" : "connection lost, trying again");
  picture.root.classList.toggle("stale", value !== "live");
}

// tell shows lessons. Another lesson must apply twice in a row before it replaces the one that is shown.
let shown = "";
let seen = "";
function tell(found) {
  const id = found.map((l) => l.id).join(" ");
  if (id !== shown && id !== seen && shown) {
    seen = id;
    return;
  }
  if (id !== shown) say(found[0].text);
  shown = seen = id;
  text(byId("lesson"), unbroken(found[0].text));
  text(byId("lesson-more"), unbroken(found[1]?.text ?? ""));
}

// announce says which pods came, went or changed.
function announce(before, after) {
  const old = new Map(before.pods.map((p) => [p.name, p]));
  const words = [];
  for (const p of after.pods) {
    const was = old.get(p.name)?.state;
    if (p.pod && was !== p.state && (was || p.state !== "ready")) words.push(`${shortPod(p.pod)} is ${stateText(p.state)}`);
    else if (p.pod && !was) words.push(`${shortPod(p.pod)} is new`);
  }
  if (words.length > 0) say(words.length > 4 ? `${count(words.length, "pod")} changed.` : list(words) + ".");
}

function controls() {
  drawWays(Object.keys(WAYS).slice(0, 2));
  for (const r of RATES) {
    const input = option(byId("rate-choice"), "rate", String(r), r === 0 ? "off" : String(r), r === load.rate);
    input.addEventListener("change", () => {
      load.set({ rate: r });
      say(r === 0 ? "The page makes no calls." : `The page makes ${r} calls per second.`);
    });
  }
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    burst(Number(byId("burst-n").value));
  });
  picture.root.addEventListener("click", (event) => {
    if (!event.target.closest("button")) story.tell(callAt(event));
  });
  picture.root.addEventListener("pointermove", (event) => picture.root.classList.toggle("pointing", Boolean(callAt(event))));
}

function callAt(event) {
  const frame = picture.root.getBoundingClientRect();
  return dots.callAt(event.clientX - frame.left, event.clientY - frame.top);
}

// drawWays shows the ways of calling that service-a has.
function drawWays(ways) {
  const root = byId("way-choice");
  const wanted = ways.join(" ");
  if (root.dataset.ways === wanted || ways.length === 0) return;
  root.dataset.ways = wanted;
  root.replaceChildren();
  if (!ways.includes(load.via)) load.replaceWay(ways[0]);
  for (const via of ways) {
    const input = option(root, "via", via, wayShort(via), via === load.via, glyph(via));
    input.addEventListener("change", () => {
      load.set({ via });
      say(`Calls go over ${wayLabel(via)}.`);
      if (latest) draw();
    });
  }
  byId("legend").replaceChildren(...ways.map((via) => el("li", {}, glyph(via), wayLabel(via))), el("li", {}, glyph("failed"), "failed attempt"));
}

function option(parent, name, value, label, checked, mark) {
  const input = el("input", { type: "radio", name, value, checked });
  parent.append(el("label", {}, input, el("span", {}, mark ?? "", label)));
  return input;
}

async function burst(n) {
  const button = byId("burst-send");
  const outcome = byId("outcome");
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true"; // disabled would take the focus away
  const via = load.via;
  text(outcome, `${count(n, "call")} over ${wayLabel(via)} …`);
  try {
    const r = await load.burst(n);
    const pods = Object.entries(r.pods ?? {}).sort((a, b) => b[1] - a[1]);
    const to = few(pods.map(([pod, c]) => `${shortPod(pod)} ${c}`), 4);
    const failed = errorsText(r.errors);
    const words = `${count(r.n, "call")} over ${wayLabel(via)} in ${Math.round(r.durationMs)} ms` + (to ? `: ${to}` : "") + (failed ? `; failed: ${failed}` : "");
    text(outcome, words);
    say(words);
  } catch (err) {
    text(outcome, `The burst failed: ${err.message}`);
    say(outcome.textContent);
  } finally {
    button.ariaDisabled = null;
  }
}

async function press(pod, f) {
  try {
    await setFault(pod, f.fault);
    text(byId("outcome"), `${shortPod(pod)} ${f.done}.`);
  } catch (err) {
    text(byId("outcome"), `The fault of ${shortPod(pod)} did not change: ${err.message}`);
  }
  say(byId("outcome").textContent);
}
