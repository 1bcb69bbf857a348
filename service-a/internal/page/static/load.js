// The load that this page asks service-a for: a rate, or a burst. It ends with the page's connection.

const BURST_MS = 30000; // service-a ends a burst after 10 s

export class Load {
  constructor() {
    this.via = "http";
    this.rate = 0;
    this.reconnect = () => {};
    this.waiting = null;
  }

  // set changes the way or the rate.
  set(change) {
    const before = this.rate;
    Object.assign(this, change);
    if (before > 0 || this.rate > 0) this.reconnect(this.via, this.rate);
  }

  // burst makes n calls, and returns their outcome.
  burst(n) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error("service-a did not tell the outcome")), BURST_MS);
      this.waiting = (outcome) => {
        clearTimeout(late);
        resolve(outcome);
      };
      this.reconnect(this.via, this.rate, n);
    });
  }

  // told takes the outcome of a burst from the connection.
  told(outcome) {
    this.waiting?.(outcome);
    this.waiting = null;
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
