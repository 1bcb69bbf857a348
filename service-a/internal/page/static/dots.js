// The dots: each is a call that travels from service-a by way of a name to a pod. At a high rate a snapshot lists some of
// its calls only; the others become dots without a story, shared among the pods as the calls were.

import { SHAPES, byId, calm, svg } from "./dom.js";
import { hostOf } from "./model.js";

const MAX_DOTS = 180;      // in the picture at once
const MAX_PER_SNAPSHOT = 60;
const SPREAD_MS = 500;     // snapshots come this often; their calls start spread over the time
const FIRST_LEG_MS = 380;  // service-a to the name
const LEG_MS = 620;        // the name to a pod
const FADE_MS = 260;
const FAIL_MS = 1100;
const MAX_WAIT_MS = 1500;  // a slow call waits at its pod for as long as it took, up to this

export class Dots {
  constructor(picture) {
    this.picture = picture;
    this.layer = byId("dots");
    this.moving = [];
    this.idle = []; // nodes to use again
    this.carry = new Map(); // fractions of dots that are owed, by pod and way
  }

  // add starts the dots of a model's calls, and returns how many calls one dot stands for.
  add(m) {
    const listed = m.calls;
    const total = listed.length + m.more;
    if (total === 0 || document.hidden || calm()) return 1;
    const per = Math.max(1, total / MAX_PER_SNAPSHOT);
    const now = performance.now();
    const start = () => now + Math.random() * SPREAD_MS;
    const shown = new Map();
    for (const c of per > 1 ? listed.filter((c) => c.class !== "ok" || Math.random() < 1 / per) : listed) {
      this.start(c.via, routeOf(c, m), start(), c);
      shown.set(key(c.via, c.pod), (shown.get(key(c.via, c.pod)) ?? 0) + 1);
    }
    if (m.more > 0) this.fill(m, total / per, shown, start);
    return per;
  }

  // fill starts the dots of calls that are not listed, so that each pod gets the share that it has of the rate.
  fill(m, dots, shown, start) {
    const all = m.pods.reduce((n, p) => n + p.rate, 0);
    if (all === 0) return;
    for (const p of m.pods) {
      for (const [via, f] of Object.entries(p.via)) {
        const k = key(via, p.pod);
        let owed = (dots * f.rate) / all - (shown.get(k) ?? 0) + (this.carry.get(k) ?? 0);
        for (; owed >= 1; owed--) this.start(via, [{ pod: p.key, ok: true }], start(), null);
        if (this.carry.size > 1000) this.carry.clear(); // of pods that are long gone
        this.carry.set(k, Math.max(-2, owed));
      }
    }
  }

  start(via, stops, at, call) {
    if (this.moving.length >= MAX_DOTS) return;
    const node = this.idle.pop() ?? this.layer.appendChild(svg("path"));
    node.setAttribute("class", "mark " + via);
    node.setAttribute("d", SHAPES[via] ?? SHAPES.http);
    node.style.display = "none";
    const wait = Math.min(MAX_WAIT_MS, call?.call?.durationMs > 60 ? call.call.durationMs : 0);
    this.moving.push({ node, via, call, legs: legsOf(via, stops, wait), leg: 0, at, x: -99, y: -99 });
    if (!this.running) {
      this.running = true;
      requestAnimationFrame((t) => this.frame(t));
    }
  }

  frame(now) {
    let kept = 0;
    for (const dot of this.moving) {
      if (this.move(dot, now)) {
        this.moving[kept++] = dot;
      } else {
        dot.node.style.display = "none";
        this.idle.push(dot.node);
      }
    }
    this.moving.length = kept;
    this.running = kept > 0;
    if (this.running) requestAnimationFrame((t) => this.frame(t));
  }

  // move places a dot for the time now, and reports whether it is still on its way.
  move(dot, now) {
    if (now < dot.at) return true;
    while (now >= dot.at + dot.legs[dot.leg].ms) {
      dot.at += dot.legs[dot.leg].ms;
      if (++dot.leg === dot.legs.length) return false;
    }
    const leg = dot.legs[dot.leg];
    const t = (now - dot.at) / leg.ms;
    const curve = this.picture.curve(leg.from, leg.to);
    if (!curve) return false; // the pod is gone from the picture
    const [x, y] = pointOf(curve, leg.back ? 1 - ease(t) : leg.stay ? 1 : ease(t));
    if (leg.failed && !dot.failed) {
      dot.failed = true;
      dot.node.setAttribute("class", "mark failed");
      dot.node.setAttribute("d", SHAPES.failed);
    } else if (!leg.failed && dot.failed) {
      dot.failed = false;
      dot.node.setAttribute("class", "mark " + dot.via);
      dot.node.setAttribute("d", SHAPES[dot.via] ?? SHAPES.http);
    }
    const scale = leg.failed ? 1.5 - 0.3 * t : leg.fade ? 1 + 0.8 * t : 1;
    dot.x = x;
    dot.y = y;
    dot.node.style.display = "";
    dot.node.style.opacity = leg.fade || leg.failed ? 1 - t * t : 1;
    dot.node.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${scale.toFixed(2)})`);
    return true;
  }

  // at returns the listed call whose dot is next to a point of the picture, or null.
  at(x, y) {
    let found = null;
    let nearest = 18 * 18;
    for (const dot of this.moving) {
      const d = (dot.x - x) ** 2 + (dot.y - y) ** 2;
      if (dot.call && d < nearest) [found, nearest] = [dot.call, d];
    }
    return found;
  }
}

const key = (via, pod) => via + " " + pod;

// routeOf returns where a call went: the pods of its attempts, in order. An attempt whose pod is unknown has pod null.
function routeOf(c, m) {
  const keyOf = (t) => m.pods.find((p) => (t.pod ? p.pod === t.pod : p.ip && p.ip === hostOf(t.peer ?? "")))?.key ?? null;
  const tries = c.call?.tries ?? [];
  const stops = tries.slice(0, -1).map((t) => ({ pod: keyOf(t), ok: false }));
  stops.push({ pod: keyOf({ pod: c.pod, peer: c.call?.peer }), ok: c.class === "ok" });
  return stops;
}

// legsOf turns the stops of a route into legs: pieces of a line with a duration.
function legsOf(via, stops, wait) {
  const name = "name " + via;
  const legs = [{ from: "caller", to: name, ms: FIRST_LEG_MS }];
  stops.forEach((stop, i) => {
    const last = i === stops.length - 1;
    const line = stop.pod ? { from: name, to: "pod " + stop.pod } : { from: "caller", to: name };
    if (stop.pod) legs.push({ ...line, ms: LEG_MS });
    if (last && wait) legs.push({ ...line, ms: wait, stay: true });
    if (!stop.ok) legs.push({ ...line, ms: last ? FAIL_MS : FAIL_MS / 2, stay: true, failed: true });
    else legs.push({ ...line, ms: FADE_MS, stay: true, fade: true });
    if (!last && stop.pod) legs.push({ ...line, ms: LEG_MS / 2, back: true });
  });
  return legs;
}

const ease = (t) => t * t * (3 - 2 * t);

// pointOf returns the point at a share t of the way along curves, see Picture.curve.
function pointOf(c, t) {
  const lengths = [];
  for (let i = 0; i + 7 < c.length; i += 6) lengths.push(Math.hypot(c[i + 6] - c[i], c[i + 7] - c[i + 1]));
  let left = t * lengths.reduce((a, b) => a + b, 0);
  let i = 0;
  while (i < lengths.length - 1 && left > lengths[i]) left -= lengths[i++];
  const [x1, y1, x2, y2, x3, y3, x4, y4] = c.slice(6 * i);
  const v = lengths[i] > 0 ? Math.min(left / lengths[i], 1) : 1;
  const u = 1 - v;
  const [p, q, r, s] = [u * u * u, 3 * u * u * v, 3 * u * v * v, v * v * v];
  return [p * x1 + q * x2 + r * x3 + s * x4, p * y1 + q * y2 + r * y3 + s * y4];
}
