// The fault switch of a pod: its buttons, and the request that sets a fault.

import { attr, el } from "./dom.js";
import { isDelay } from "./words.js";

const HEAL = { id: "heal", label: "Heal", fault: null, done: "is healed" };
const FAULTS = [
  { id: "slow", label: "Slow", fault: { latency: "300ms" }, on: (f) => isDelay(f?.latency), done: "is slow now" },
  { id: "failing", label: "Failing", fault: { errorRate: 0.5 }, on: (f) => f?.errorRate > 0, done: "fails now" },
  { id: "notReady", label: "Not ready", fault: { notReady: true }, on: (f) => Boolean(f?.notReady), done: "is not ready now" },
  HEAL,
];

// showFaults makes parent show the buttons of a pod's fault switch, or none if shown is false. press is called with the pod's
// name and the fault. A button whose fault is on is pressed; to press it again heals the pod.
export function showFaults(parent, shown, pod, press) {
  if (!shown) {
    parent.faults?.remove();
    parent.faults = null;
    return;
  }
  if (!parent.faults) parent.append((parent.faults = makeButtons(press)));
  const group = parent.faults;
  group.pod = pod.pod;
  attr(group, "aria-label", "Fault of " + pod.name);
  FAULTS.forEach((f, i) => {
    const button = group.children[i];
    button.disabled = pod.state === "gone";
    if (f.on) attr(button, "aria-pressed", String(f.on(pod.fault)));
  });
}

function makeButtons(press) {
  const group = el("div", { class: "faults", role: "group" });
  for (const f of FAULTS) {
    const button = el("button", { type: "button", class: f.id }, f.label);
    button.addEventListener("click", () => press(group.pod, button.ariaPressed === "true" ? HEAL : f));
    group.append(button);
  }
  return group;
}

// setFault makes a pod slow, failing or not ready; null heals it.
export async function setFault(pod, fault) {
  const url = "api/faults/" + encodeURIComponent(pod);
  const headers = { "X-Tandem": "1" };
  const request = fault ? { method: "PUT", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(fault) } : { method: "DELETE", headers };
  const response = await fetch(url, { ...request, signal: AbortSignal.timeout(10000) });
  if (response.ok) return;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.detail || problem.title || `status ${response.status}`);
}
