// The load that this page asks service-a for: a rate, or a burst. It ends with the page's connection.

const BURST_TIMEOUT_MS = 30000; // service-a ends a burst after 10 s

export class Load {
  // showReason shows why service-a makes no calls.
  constructor(showReason) {
    this.showReason = showReason;
    this.via = "http";
    this.rate = 0;
    this.reconnect = () => {};
    this.pending = null; // how to settle the promise of the burst that is under way
  }

  // set changes the way or the rate.
  set(change) {
    const before = this.rate;
    Object.assign(this, change);
    if (before === 0 && this.rate === 0) return;
    this.pending?.reject(new Error("another load has replaced it"));
    this.reconnect(this.via, this.rate);
  }

  // replaceWay changes the way because service-a has no longer the one in use. A burst over that way fails.
  replaceWay(via) {
    this.via = via;
    this.pending?.reject(new Error("service-a no longer calls service-b this way"));
    this.reconnect(via, this.rate);
  }

  // burst makes n calls, and returns their outcome.
  burst(n) {
    return new Promise((resolve, reject) => {
      const settle = (how) => (value) => {
        clearTimeout(timer);
        this.pending = null;
        how(value);
      };
      this.pending = { resolve: settle(resolve), reject: settle(reject) };
      const timer = setTimeout(() => {
        this.pending.reject(new Error("service-a did not tell the outcome"));
        this.reconnect(this.via, this.rate); // without the burst, in case service-a never got it
      }, BURST_TIMEOUT_MS);
      this.reconnect(this.via, this.rate, n);
    });
  }

  // noLoad takes the reason why service-a makes no calls.
  noLoad(reason) {
    if (this.pending) this.pending.reject(new Error(reason));
    else this.showReason(reason);
  }

  // burstDone takes the outcome of a burst from the connection.
  burstDone(outcome) {
    this.pending?.resolve(outcome);
  }
}
