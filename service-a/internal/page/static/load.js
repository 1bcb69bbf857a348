// The load that this page asks service-a for: a rate, or a burst. It ends with the page's connection.

const BURST_MS = 30000; // service-a ends a burst after 10 s

export class Load {
  // noted shows why service-a makes no calls.
  constructor(noted) {
    this.noted = noted;
    this.via = "http";
    this.rate = 0;
    this.reconnect = () => {};
    this.waiting = null;
  }

  // set changes the way or the rate.
  set(change) {
    const before = this.rate;
    Object.assign(this, change);
    if (before === 0 && this.rate === 0) return;
    this.waiting?.not("another load has replaced it");
    this.reconnect(this.via, this.rate);
  }

  // burst makes n calls, and returns their outcome.
  burst(n) {
    return new Promise((resolve, reject) => {
      const end = (settle, value) => {
        clearTimeout(late);
        this.waiting = null;
        settle(value);
      };
      const late = setTimeout(() => end(reject, new Error("service-a did not tell the outcome")), BURST_MS);
      this.waiting = { told: (outcome) => end(resolve, outcome), not: (why) => end(reject, new Error(why)) };
      this.reconnect(this.via, this.rate, n);
    });
  }

  // refused takes the reason why service-a makes no calls.
  refused(why) {
    if (this.waiting) this.waiting.not(why);
    else this.noted(why);
  }

  // told takes the outcome of a burst from the connection.
  told(outcome) {
    this.waiting?.told(outcome);
  }
}

// setFault makes a pod slow, failing or not ready; null heals it.
export async function setFault(pod, fault) {
  const url = "api/faults/" + encodeURIComponent(pod);
  const headers = { "X-Tandem": "1" };
  const request = fault ? { method: "PUT", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(fault) } : { method: "DELETE", headers };
  return result(await fetch(url, { ...request, signal: AbortSignal.timeout(10000) }));
}

async function result(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || body.title || `status ${response.status}`);
  return body;
}
