// What the picture, the table and the lesson read from a snapshot.

import { sum } from "./words.js";

export const errorCount = (errors) => sum(Object.values(errors ?? {}));

// model adds to a snapshot what several parts need: a key and totals for each pod, and the figures by way.
export function model(snapshot) {
  const pods = (snapshot.pods ?? []).map((p) => {
    // In the order of the ways, which a JSON object does not keep.
    const via = Object.fromEntries((snapshot.ways ?? []).filter((w) => p.via?.[w.via]).map((w) => [w.via, p.via[w.via]]));
    const calls = sum(Object.values(via).map((f) => f.count));
    return {
      ...p,
      via,
      key: p.pod || p.ip,
      name: p.pod || p.ip,
      calls,
      rate: sum(Object.values(via).map((f) => f.rate)),
      errors: sum(Object.values(via).map((f) => errorCount(f.errors))),
    };
  });
  pods.sort((a, b) => order(a.zone, b.zone) || order(a.node, b.node) || order(a.name, b.name));
  const unserved = snapshot.unserved ?? {};
  const ways = (snapshot.ways ?? []).map((w) => {
    const shares = pods.filter((p) => p.via[w.via]?.count > 0).map((p) => ({ pod: p, ...p.via[w.via] }));
    const lost = errorCount(unserved[w.via]); // they name no pod
    return {
      ...w,
      addresses: w.addresses ?? [],
      shares,
      lost: unserved[w.via],
      calls: sum(shares.map((s) => s.count)) + lost,
      rate: sum(shares.map((s) => s.rate)),
      errors: sum(shares.map((s) => errorCount(s.errors))) + lost,
    };
  });
  return { at: snapshot.at, pods, ways, unserved, calls: snapshot.calls ?? [], more: snapshot.more ?? 0 };
}

// node-1 and node-01 have the same place as numbers, and are still two nodes.
const order = (a = "", b = "") => a.localeCompare(b, "en", { numeric: true }) || (a < b ? -1 : Number(a > b));

// hostOf returns the host of host:port.
export const hostOf = (address) => address.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");

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
