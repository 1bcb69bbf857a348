// What the picture, the table and the lesson read from a snapshot.

import { addErrors, errorCount, sum } from "./words.js";

// model adds to a snapshot what several parts need: a name and totals for each pod, and the figures by way.
export function model(snapshot) {
  const pods = (snapshot.pods ?? []).map((p) => {
    // In the order of the ways, which a JSON object does not keep.
    const via = Object.fromEntries((snapshot.ways ?? []).filter((w) => p.via?.[w.via]).map((w) => [w.via, p.via[w.via]]));
    const calls = sum(Object.values(via).map((f) => f.count));
    return {
      ...p,
      via,
      name: p.pod || p.ip,
      calls,
      rate: sum(Object.values(via).map((f) => f.rate)),
      errors: sum(Object.values(via).map((f) => errorCount(f.errors))),
    };
  });
  pods.sort((a, b) => order(a.zone, b.zone) || order(a.node, b.node) || order(a.name, b.name));
  const ways = (snapshot.ways ?? []).map((w) => {
    const shares = pods.filter((p) => p.via[w.via]?.count > 0).map((p) => ({ pod: p, ...p.via[w.via] }));
    const unserved = snapshot.unserved?.[w.via] ?? {}; // failed calls that name no pod, by class
    const byClass = addErrors([...shares.map((s) => s.errors), unserved]);
    return {
      ...w,
      addresses: w.addresses ?? [],
      shares,
      unserved,
      calls: sum(shares.map((s) => s.count)) + errorCount(unserved),
      rate: sum(shares.map((s) => s.rate)),
      byClass,
      errors: errorCount(byClass),
    };
  });
  return { pods, ways, calls: snapshot.calls ?? [], more: snapshot.more ?? 0 };
}

// node-1 and node-01 have the same place as numbers, and are still two nodes.
const order = (a = "", b = "") => a.localeCompare(b, "en", { numeric: true }) || (a < b ? -1 : Number(a > b));

// zones groups pods that are sorted: [{ zone, nodes: [{ node, pods }] }].
export function zones(pods) {
  const groups = [];
  for (const pod of pods) {
    const zone = pod.zone ?? "";
    const node = pod.node ?? "";
    if (groups.at(-1)?.zone !== zone) groups.push({ zone, nodes: [] });
    const nodes = groups.at(-1).nodes;
    if (nodes.at(-1)?.node !== node) nodes.push({ node, pods: [] });
    nodes.at(-1).pods.push(pod);
  }
  return groups;
}
