// The words and number formats that all parts of the page share.

export const WAYS = {
  "http": { label: "HTTP", short: "HTTP" },
  "grpc": { label: "gRPC", short: "gRPC" },
  "grpc-service": { label: "gRPC through the Service", short: "gRPC, Service" },
};

export const wayLabel = (via) => WAYS[via]?.label ?? via;
export const wayShort = (via) => WAYS[via]?.short ?? via;

const STATES = { ready: "ready", notReady: "not ready", gone: "gone" };

export const stateText = (state) => STATES[state] ?? state;

// What a class of errors means, and what to check next.
export const CLASSES = {
  dns: ["the name has no address, or DNS did not respond",
    "Check the name's spelling and namespace. A headless name has no address while no pod is ready."],
  refused: ["nothing listens on the address",
    "Check the port, and whether the pod is running: kubectl get pods -o wide."],
  timeout: ["the deadline passed",
    "Check whether the pod is slow or hangs. A NetworkPolicy that drops packets looks the same."],
  unavailable: ["the pod is overloaded, draining or unreachable, or broke the connection",
    "Check the pod's readiness, restarts and log. If it is overloaded, add pods."],
  denied: ["service-b, or a proxy in front of it, refuses service-a",
    "Check the token that service-a sends, and the authorization policy of the mesh."],
  token: ["service-a has no valid token of its own to send",
    "Read service-a's log: it has the reason."],
  canceled: ["the caller of service-a went away",
    "Nothing to check, if the caller was this page and it was closed."],
  other: ["anything else, such as a response that cannot be decoded",
    "Search the logs of both services for the trace id."],
};

// shortPod drops what all pods of a ReplicaSet share: service-b-6d4c-x2x4z is …x2x4z.
export function shortPod(name) {
  const parts = name.split("-");
  return parts.length >= 4 ? "…" + parts.at(-1) : name;
}

// ms formats a duration, given in milliseconds.
export function ms(v) {
  if (!Number.isFinite(v)) return "–";
  if (v >= 1000) return (v / 1000).toFixed(v < 10000 ? 1 : 0) + " s";
  return (v < 10 ? v.toFixed(1) : Math.round(v)) + " ms";
}

// unbroken keeps numbers and their units, and the short name of a pod, on one line.
export const unbroken = (sentence) => sentence.replace(/(\d) (?=%|m?s\b)/g, "$1\u00a0").replace(/…(?=\w)/g, "…\u2060");

// rate formats a number of calls per second.
export const rate = (v) => (v > 0 && v < 9.95 ? v.toFixed(1) : String(Math.round(v)));

export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// list joins words: a, b and c.
export function list(words) {
  return words.length < 2 ? words.join("") : words.slice(0, -1).join(", ") + " and " + words.at(-1);
}

// few names the first n items: a, b and 7 more.
export function few(items, n) {
  return items.slice(0, n).join(", ") + (items.length > n ? ` and ${items.length - n} more` : "");
}

// hostOf returns the host of host:port, without the brackets of an IPv6 address.
export const hostOf = (address) => address.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");

export const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

// addErrors adds up numbers of failed calls by class.
export function addErrors(all) {
  const total = {};
  for (const errors of all) for (const [c, n] of Object.entries(errors ?? {})) total[c] = (total[c] ?? 0) + n;
  return total;
}

export const errorCount = (errors) => sum(Object.values(errors ?? {}));

// errorsText says how many calls failed, by class: "3 timeout, 1 refused".
export function errorsText(errors) {
  return Object.entries(errors ?? {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]).map(([c, n]) => `${n} ${c}`).join(", ");
}

// faultText describes a fault of the switch in a word or two, or is "".
export function faultText(fault) {
  if (!fault) return "";
  const words = [];
  if (isDelay(fault.latency)) words.push("slow by " + fault.latency);
  if (isDelay(fault.cpu)) words.push("uses CPU for " + fault.cpu);
  if (fault.errorRate > 0) words.push(`fails ${Math.round(fault.errorRate * 100)} %`);
  if (fault.notReady) words.push("says not ready");
  return words.join(", ");
}

export const isDelay = (text) => Boolean(text) && !/^0+(\.0*)?(h|m|s|ms|µs|ns)?$/.test(text);
