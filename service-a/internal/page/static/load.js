// The load that this page makes: a rate, or a burst. It stops while the page is hidden, because nobody watches.

const TICK_MS = 500;
const MAX_PENDING = 4; // requests of a rate. A slow service-b gets fewer calls instead of a queue

export class Load {
  constructor() {
    this.via = "http";
    this.rate = 0;
    this.pending = 0;
    this.owed = 0;
    setInterval(() => this.tick(), TICK_MS);
  }

  tick() {
    if (document.hidden || this.rate === 0) {
      this.owed = 0;
      return;
    }
    // A rate of 5 is 2 calls and 3 calls in turn.
    this.owed = Math.min(this.owed + (this.rate * TICK_MS) / 1000, this.rate);
    const n = Math.floor(this.owed);
    if (n < 1 || this.pending >= MAX_PENDING) return;
    this.owed -= n;
    this.pending++;
    // A failure shows in the picture, or as a lost connection.
    spread(this.via, n).catch(() => {}).finally(() => this.pending--);
  }

  // burst makes n calls, and returns the response of api/spread.
  burst(n) {
    return spread(this.via, n);
  }
}

async function spread(via, n) {
  const response = await fetch(`api/spread?via=${encodeURIComponent(via)}&n=${n}`, { signal: AbortSignal.timeout(30000) });
  return result(response);
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
