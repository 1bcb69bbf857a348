// What is to be learned from the picture now, as rules over a model. The first rule that applies wins, for the state of
// service-b and for each way of calling. A rule returns { id, text }, or nothing; one for a way also returns its weight: what
// has the greatest is said first.

import { CLASSES, addErrors, count, errorsText, hostOf, list, ms, shortPod, sum, wayLabel } from "./words.js";

const FEW = 10; // calls of a way, or of a pod over a way; fewer show nothing
const SLOW_MS = 100; // a pod whose median is less above the others' may only have had to open connections

// lessons returns the one or two things to say, the most important first. recent are the latest calls, among them those
// that were retried.
export function lessons(m, recent = m.calls) {
  const general = first([noAddress, allFail, gone, someNotReady, failing, slow], m, recent);
  if (general?.alone) return [general];
  const ways = m.ways.filter((w) => w.calls >= FEW).map((w) => first([failed, onlyPod, oneAddress, pinned, oneConnection, spreadByProxy, moved, spreadByNetwork, spreadByClient], w, m)).filter(Boolean);
  ways.sort((a, b) => b.weight - a.weight);
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
const ready = (m) => m.pods.filter((p) => p.state === "ready");
const notReady = (m) => m.pods.filter((p) => p.state === "notReady");
// An address from which nothing has responded is not known to be a pod.
const hasResponded = (p) => Boolean(p.pod);
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

function allFail(m) {
  const n = failedCalls(m);
  if (n < FEW || !ready(m).some(hasResponded)) return null;
  return { id: "all-fail", alone: true, text: `No call succeeds: all ${count(n, "call")} failed (${classes(m)}). service-a limits its retries, so that it does not make an outage worse.` };
}

function gone(m) {
  const n = failedCalls(m);
  if (n === 0 || [...ready(m), ...notReady(m)].some(hasResponded)) return null;
  return { id: "gone", alone: true, text: `service-b is gone: all ${count(n, "call")} failed (${classes(m)}). service-a limits its retries, so that service-b is not flooded when it returns.` };
}

// failedCalls returns how many calls failed, or 0 if one succeeded.
function failedCalls(m) {
  const errors = sum(m.ways.map((w) => w.errors));
  return errors < sum(m.ways.map((w) => w.calls)) ? 0 : errors;
}

const classes = (m) => errorsText(addErrors(m.ways.map((w) => w.byClass)));

function someNotReady(m) {
  const out = notReady(m);
  const rest = ready(m);
  if (out.length === 0) return null;
  const are = `${names(out)} ${out.length === 1 ? "is" : "are"} not ready`;
  const called = m.ways.some((w) => w.rate > 0);
  if (rest.length === 0) {
    const address = m.ways.some((w) => w.addresses.length === 0) ? " The headless name has no address now." : "";
    return { id: "none-ready", text: `${are}, and there is no other pod.${address} ${callsEnd(m, called)}` };
  }
  const them = out.length === 1 ? "it" : "them";
  if (!called) return { id: "not-ready", text: `${are}. Make calls to see whether any still go to ${them}.` };
  const kept = m.ways.map((w) => ({ w, share: rateShare(w, out) })).sort((a, b) => b.share - a.share)[0];
  if (kept.share < 0.01) return { id: "not-ready", text: `${are}, so calls go to ${names(rest)} instead. No call has to fail for that.` };
  const part = `${percent(kept.share)} of the ${wayLabel(kept.w.via)} calls`;
  const why = whyKept(kept.w, m, out);
  if (!why) return { id: "not-ready-now", text: `${are}, but got ${part} of the last few seconds.` };
  return { id: "not-ready-kept", text: `${are}, but ${part} still go to ${them}: ${why}` };
}

// callsEnd says how calls end if no pod is ready.
function callsEnd(m, called) {
  const errors = sum(m.ways.map((w) => w.errors));
  if (errors > 0) return failedCalls(m) ? "Calls fail." : "Some calls fail.";
  return called ? "Calls still succeed." : "Make calls to see whether they succeed.";
}

// rateShare returns the share of a way's calls of the last seconds that some pods got.
const rateShare = (w, pods) => (w.rate > 0 ? sum(w.shares.filter((s) => pods.includes(s.pod)).map((s) => s.rate)) / w.rate : 0);

// whyKept says why a way still reaches pods that are not ready. It returns "" if the calls may be from before.
function whyKept(w, m, out) {
  const hosts = w.addresses.map(hostOf);
  if (w.balancedBy === "network" && !m.pods.some((p) => hosts.includes(p.ip))) {
    return "a ClusterIP picks a pod per connection, and open connections stay on their pod until service-b closes them at MAX_CONNECTION_AGE.";
  }
  if (w.via !== "http" || !out.some((p) => hosts.includes(p.ip))) return "";
  return `the name still lists ${out.length === 1 ? "its address" : "their addresses"}, and over HTTP service-a has no other sign that a pod is not ready.`;
}

function failing(m, recent) {
  const bad = present(m).filter((p) => p.fault?.errorRate > 0);
  if (bad.length === 0) return null;
  const pod = bad[0];
  const fails = `${shortPod(pod.name)} fails ${percent(pod.fault.errorRate)} of its requests`;
  const total = sum(m.ways.map((w) => w.calls));
  const errors = sum(m.ways.map((w) => w.errors));
  if (total < FEW) return { id: "failing", text: `${fails}. Make calls to see what service-a does about it.` };
  const ejected = m.ways.find((w) => w.balancedBy === "client" && w.addresses.length > 1 && w.calls >= FEW && shareOf(w, pod) < 0.4 / ready(m).length);
  if (errors === 0 && ejected) {
    return { id: "ejected", text: `${fails}, so service-a ejected it: it gets almost no ${wayLabel(ejected.via)} calls, except one every 10 s that tests it. No call failed.` };
  }
  const retried = recent.some((c) => c.call.attempts > 1);
  const others = m.pods.filter((p) => p.calls > 0);
  if (pod.calls === 0 && !retried && total === sum(others.map((p) => p.calls))) {
    const to = others.length === 1 ? "another pod" : `${others.length} other pods`;
    return { id: "not-called", text: `${fails}, but gets none: all ${count(total, "call")} went to ${to}.` };
  }
  if (errors > 0) {
    return { id: "failing", text: `${fails}, and ${count(errors, "call")} of ${total} failed: service-a retries, but only within a budget, because retries must not make an outage worse.` };
  }
  if (!retried) return { id: "not-failed", text: `${fails}. All ${count(total, "call")} have succeeded so far.` };
  return { id: "retried", text: `${fails}, and yet all ${count(total, "call")} succeeded: service-a retries what failed, on another pod if it can choose.` };
}

function slow(m) {
  for (const w of m.ways) {
    const sorted = w.shares.filter((s) => s.p50 > 0 && s.count >= FEW).sort((a, b) => b.p50 - a.p50); // without a success there is no p50
    if (sorted.length < 2) continue;
    const [worst] = sorted;
    const usual = sorted[Math.floor(sorted.length / 2)].p50;
    if (worst.p50 < 5 * usual || worst.p50 - usual < SLOW_MS) continue;
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
  const [[top]] = Object.entries(w.byClass).sort((a, b) => b[1] - a[1]);
  const means = CLASSES[top]?.[0];
  return { id: "failed-" + w.via, weight: 4, text: `${w.errors} of ${calls(w)} failed, most with class ${top}${means ? `: ${means}` : ""}.` };
}

function onlyPod(w, m) {
  if (w.shares.length !== 1 || present(m).length !== 1) return null;
  return { id: "only-pod", weight: 1, text: `All ${calls(w)} went to ${shortPod(w.shares[0].pod.name)}, the only pod behind the name. With more pods, calls spread.` };
}

// oneAddress is about a headless name that has one pod left.
function oneAddress(w, m) {
  const pod = m.pods.find((p) => w.addresses.length === 1 && hostOf(w.addresses[0]) === p.ip);
  if (!pod || w.shares.length < 2) return null;
  return { id: "one-address", weight: 2, text: `The ${calls(w)} went to ${spread(w.shares)}. Now the name has one address, that of ${shortPod(pod.name)}, and calls go to this pod only.` };
}

function pinned(w, m) {
  if (w.via === "http" || w.balancedBy !== "network" || w.shares.length !== 1 || ready(m).length < 2) return null;
  return { id: "pinned", weight: 5, text: `All ${calls(w)} went to one pod, because a ClusterIP picks a pod per connection and gRPC keeps one connection.` };
}

function oneConnection(w, m) {
  if (w.via !== "http" || w.balancedBy !== "network" || w.shares.length !== 1 || ready(m).length < 2) return null;
  return { id: "http-one", weight: 3, text: `All ${calls(w)} went to one pod: a ClusterIP picks a pod per connection, and service-a reuses its connection. More calls at a time open more connections, and reach other pods.` };
}

// spreadByProxy is about an equal spread behind a virtual IP. Over HTTP it may also be chance, as there are several connections.
function spreadByProxy(w) {
  const shares = w.shares.filter((s) => s.pod.state !== "gone");
  const now = shares.filter((s) => s.rate > 0).length;
  if (w.balancedBy !== "network" || shares.length < 2 || now === 1) return null;
  if (!even(shares, 1 / shares.length, w.via === "http" ? 0.2 : 0.4)) return null;
  const why = w.via === "http"
    ? ": by chance, as a ClusterIP picks a pod for each connection, or because a mesh's sidecar picks one for each call."
    : ", although the name has one address: a proxy, such as a mesh's sidecar, picks a pod for each call.";
  return { id: "proxy-" + w.via, weight: 1, text: `The ${calls(w)} spread evenly over ${spread(shares)}${why}` };
}

function moved(w) {
  if (w.via === "http" || w.balancedBy !== "network" || w.shares.length < 2) return null;
  const [top] = [...w.shares].sort((a, b) => b.rate - a.rate);
  return { id: "moved", weight: 3, text: `The ${calls(w)} went to one pod at a time: when gRPC's connection ends, a ClusterIP may pick another pod for the next one. Now it is ${shortPod(top.pod.name)}.` };
}

function spreadByNetwork(w) {
  if (w.via !== "http" || w.balancedBy !== "network" || w.shares.length < 2) return null;
  return { id: "http-spread", weight: 2, text: `The ${calls(w)} went to ${spread(w.shares)}: a ClusterIP picks a pod at random for each connection, and HTTP keeps several. That spreads calls, but not evenly.` };
}

function spreadByClient(w, m) {
  if (w.balancedBy !== "client" || w.shares.length === 0) return null;
  const why = "the name has an address for each pod, and service-a picks one for each call";
  if (w.shares.length >= ready(m).length && even(w.shares, 1 / Math.max(ready(m).length, 1))) {
    return { id: "even-" + w.via, weight: 1, text: `The ${calls(w)} spread evenly over ${spread(w.shares)}: ${why}.` };
  }
  return { id: "uneven-" + w.via, weight: 2, text: `The ${calls(w)} went to ${spread(w.shares)}: ${why}, but avoids a pod that is new, slow or failing.` };
}

function idle(m) {
  const pods = ready(m).length;
  if (pods === 0) return { id: "idle", text: "No calls yet. Choose a rate or send a burst to see where calls go." };
  return { id: "idle", text: `No calls to the ${pods === 1 ? "pod" : count(pods, "pod")} of service-b now. Choose a rate or send a burst to see where calls go.` };
}

const shareOf = (w, pod) => (w.shares.find((s) => s.pod.name === pod.name)?.count ?? 0) / w.calls;

// bounds returns the smallest and the largest share of the calls that some pods got.
function bounds(shares) {
  const total = sum(shares.map((s) => s.count));
  const parts = shares.map((s) => s.count / total);
  return [Math.min(...parts), Math.max(...parts)];
}

function even(shares, fair, tolerance = 0.4) {
  const [low, high] = bounds(shares);
  return low > (1 - tolerance) * fair && high < (1 + tolerance) * fair;
}

// spread says how many pods there are, and which shares they got: 3 pods (20 to 50 % each).
function spread(shares) {
  const [low, high] = bounds(shares).map((s) => Math.round(s * 100));
  return `${count(shares.length, "pod")} (${low === high ? `${low} %` : `${low} to ${high} %`} each)`;
}
