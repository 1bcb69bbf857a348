// What is to be learned from the picture now, as rules over a model. The first rule that applies wins, for the state of
// service-b and for each way of calling. A rule returns { id, text }, or nothing.

import { CLASSES, count, errorsText, list, ms, shortPod, sum, wayLabel } from "./words.js";

const FEW = 10; // calls of a way; fewer show nothing

// lessons returns the one or two things to say, the most important first.
export function lessons(m) {
  const general = first([noAddress, gone, notReady, failing, slow], m);
  if (general?.alone) return [general];
  const ways = m.ways.filter((w) => w.calls >= FEW).map((w) => first([failed, onlyPod, pinned, oneConnection, spreadByNetwork, spreadByClient], w, m)).filter(Boolean);
  // An unequal spread is news; an equal one is not, while a pod is slow or fails.
  ways.sort((a, b) => (b.weight ?? 0) - (a.weight ?? 0));
  const found = [general, ...ways].filter(Boolean).slice(0, 2);
  return found.length ? found : [idle(m)];
}

function first(rules, ...args) {
  for (const rule of rules) {
    const found = rule(...args);
    if (found) return found;
  }
  return null;
}

const present = (m) => m.pods.filter((p) => p.state !== "gone");
const ready = (m) => m.pods.filter((p) => p.state === "ready" && !p.fault?.notReady);
const names = (pods) => (pods.length > 3 ? count(pods.length, "pod") : list(pods.map((p) => shortPod(p.name))));
const percent = (share) => Math.round(share * 100) + " %";
const calls = (w) => count(w.calls, `${w.via === "http" ? "HTTP" : "gRPC"} call`);

function noAddress(m) {
  if (m.ways.length === 0 || m.ways.some((w) => w.addresses.length > 0) || ready(m).length > 0) return null;
  return {
    id: "no-address",
    alone: true,
    text: "The name of service-b has no address: no pod is ready. Calls fail with class dns, and succeed again by themselves when a pod is ready.",
  };
}

function gone(m) {
  const total = sum(m.ways.map((w) => w.calls));
  const errors = sum(m.ways.map((w) => w.errors));
  if (total === 0 || errors < total) return null;
  // An address from which nobody has responded says nothing about a pod.
  if (ready(m).some((p) => p.pod)) return total < FEW ? null : { id: "all-fail", alone: true, text: `No call succeeds: all ${count(total, "call")} failed (${errorsText(byClass(m))}). service-a limits its retries, so that it does not make an outage worse.` };
  return {
    id: "gone",
    alone: true,
    text: `service-b is gone: all ${count(total, "call")} failed (${errorsText(byClass(m))}). service-a limits its retries, so that service-b is not flooded when it returns.`,
  };
}

function notReady(m) {
  // The name of a pod that is not ready may have lost its address.
  const out = m.pods.filter((p) => p.state === "notReady" || p.fault?.notReady);
  const rest = ready(m);
  if (out.length === 0) return null;
  if (rest.length === 0) return { id: "none-ready", text: `No pod is ready: ${names(out)} ${out.length === 1 ? "says" : "say"} so. A headless name has no address now, and calls fail.` };
  const verb = out.length === 1 ? "is" : "are";
  return { id: "not-ready", text: `${names(out)} ${verb} not ready, so calls go to ${names(rest)} instead. No call has to fail for that.` };
}

function failing(m) {
  const bad = present(m).filter((p) => p.fault?.errorRate > 0);
  if (bad.length === 0) return null;
  const pod = bad[0];
  const name = shortPod(pod.name);
  const share = percent(pod.fault.errorRate);
  const total = sum(m.ways.map((w) => w.calls));
  const errors = sum(m.ways.map((w) => w.errors));
  if (total < FEW) return { id: "failing", text: `${name} fails ${share} of its requests. Make calls to see what service-a does about it.` };
  if (errors > 0) {
    return { id: "failing", text: `${name} fails ${share} of its requests, and ${count(errors, "call")} of ${total} failed: service-a retries, but only within a budget, because retries must not make an outage worse.` };
  }
  const ejected = m.ways.find((w) => w.balancedBy === "client" && w.addresses.length > 1 && w.calls >= FEW && shareOf(w, pod) < 0.4 / ready(m).length);
  if (ejected) {
    return { id: "ejected", text: `${name} fails ${share} of its requests, so service-a ejected it: it gets almost no ${wayLabel(ejected.via)} calls, except one every 10 s that tests it. No call failed.` };
  }
  return { id: "retried", text: `${name} fails ${share} of its requests, and yet all ${count(total, "call")} succeeded: service-a retries what failed, on another pod if it can choose.` };
}

function slow(m) {
  for (const w of m.ways) {
    if (w.shares.length < 2 || w.calls < FEW) continue;
    const sorted = [...w.shares].sort((a, b) => b.p50 - a.p50);
    const [worst] = sorted;
    const usual = sorted[Math.floor(sorted.length / 2)].p50;
    if (worst.p50 < 5 * usual || worst.p50 - usual < 20) continue;
    const fewer = shareOf(w, worst.pod) < 0.6 / w.shares.length && w.balancedBy === "client";
    return {
      id: "slow",
      text: `${shortPod(worst.pod.name)} is slow: half of its calls take over ${ms(worst.p50)}, those of the other pods ${ms(usual)}. ` +
        (fewer ? "service-a sends it fewer calls, because too many of them are pending." : "The median of all calls hides it; the p99 shows it."),
    };
  }
  return null;
}

function failed(w) {
  if (w.errors === 0 || w.errors < w.calls / 100) return null;
  const errors = {};
  for (const s of w.shares) merge(errors, s.errors);
  merge(errors, w.lost);
  const top = Object.entries(errors).sort((a, b) => b[1] - a[1])[0]?.[0];
  const means = CLASSES[top]?.[0];
  return { id: "failed-" + w.via, weight: 3, text: `${w.errors} of ${calls(w)} failed${top ? `, most with class ${top}` : ""}${means ? `: ${means}` : ""}.` };
}

function onlyPod(w, m) {
  if (w.shares.length !== 1 || present(m).length !== 1) return null;
  return { id: "only-pod", weight: 1, text: `All ${calls(w)} went to ${shortPod(w.shares[0].pod.name)}, the only pod behind the name. With more pods, calls spread.` };
}

function pinned(w, m) {
  if (w.via === "http" || w.balancedBy !== "network" || ready(m).length < 2) return null;
  if (w.shares.length !== 1) {
    const top = [...w.shares].sort((a, b) => b.rate - a.rate)[0];
    if (!top) return null;
    return { id: "moved", weight: 2, text: `The ${calls(w)} through the Service stay on one pod at a time: when gRPC's connection ends, the next one may lead to another pod. Now it is ${shortPod(top.pod.name)}.` };
  }
  return { id: "pinned", weight: 4, text: `All ${calls(w)} went to one pod, because a ClusterIP picks a pod per connection and gRPC keeps one connection.` };
}

function oneConnection(w, m) {
  if (w.via !== "http" || w.balancedBy !== "network" || w.shares.length !== 1 || ready(m).length < 2) return null;
  return { id: "http-one", weight: 2, text: `All ${calls(w)} went to one pod: a ClusterIP picks a pod per connection, and service-a reuses its connection. More calls at a time open more connections, and reach other pods.` };
}

function spreadByNetwork(w) {
  if (w.balancedBy !== "network" || w.shares.length < 2) return null;
  return { id: "http-spread", weight: 1, text: `The ${calls(w)} went to ${count(w.shares.length, "pod")} (${range(w)} each): a ClusterIP picks a pod at random for each connection, and HTTP keeps several. That spreads calls, but not evenly.` };
}

function spreadByClient(w, m) {
  if (w.balancedBy !== "client" || w.shares.length === 0) return null;
  const [low, high] = bounds(w);
  const fair = 1 / Math.max(ready(m).length, 1);
  const why = `the name has an address for each pod, and service-a picks one for each call`;
  if (w.shares.length >= ready(m).length && low > 0.6 * fair && high < 1.4 * fair) {
    return { id: "even-" + w.via, weight: 1, text: `The ${calls(w)} spread evenly over ${count(w.shares.length, "pod")} (${range(w)} each): ${why}.` };
  }
  return { id: "uneven-" + w.via, weight: 1, text: `The ${calls(w)} went to ${count(w.shares.length, "pod")} (${range(w)} each): ${why}, but avoids a pod that is new, slow or failing.` };
}

function idle(m) {
  const pods = ready(m).length;
  if (pods === 0) return { id: "idle", text: "No calls yet. Choose a rate or send a burst to see where calls go." };
  return { id: "idle", text: `No calls to the ${count(pods, "pod")} of service-b now. Choose a rate or send a burst to see where calls go.` };
}

const shareOf = (w, pod) => (w.shares.find((s) => s.pod.key === pod.key)?.count ?? 0) / w.calls;

function bounds(w) {
  const total = sum(w.shares.map((s) => s.count));
  const shares = w.shares.map((s) => s.count / total);
  return [Math.min(...shares), Math.max(...shares)];
}

function range(w) {
  const [low, high] = bounds(w).map((s) => Math.round(s * 100));
  return low === high ? `${low} %` : `${low} to ${high} %`;
}

function byClass(m) {
  const errors = {};
  for (const w of m.ways) {
    for (const s of w.shares) merge(errors, s.errors);
    merge(errors, m.unserved[w.via]);
  }
  return errors;
}

function merge(into, errors = {}) {
  for (const [c, n] of Object.entries(errors ?? {})) into[c] = (into[c] ?? 0) + n;
}
