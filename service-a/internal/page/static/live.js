// The connection to api/live, which also carries the load that the page asks for: another request might reach another
// instance of service-a, whose calls this stream does not show. The browser reconnects by itself after a broken stream; after
// an HTTP error, or if snapshots stop coming, this module connects again; after the error first without the load, because the
// service-a that responds now may lack its way of calling. While the page is hidden there is no connection.

const SILENCE_MS = 6000; // snapshots come every 500 ms
const RETRY_MS = 2000;

// connect calls hello, snapshot and burst with each event, and state with "live" or "lost". It returns a function that
// connects again, with other parameters: via, rate, and n for a burst.
export function connect({ hello, snapshot, burst, state }) {
  let query = "";
  let bare = false; // connect without query
  let source = null;
  let silence = 0;
  let retry = 0;

  const on = (use) => (event) => {
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // half an event, from a connection that broke
    }
    state("live");
    listen();
    use(data);
  };
  const listen = () => {
    clearTimeout(silence);
    silence = setTimeout(() => again(0), SILENCE_MS);
  };
  const again = (delay) => {
    clearTimeout(silence);
    clearTimeout(retry);
    source?.close();
    source = null;
    state("lost");
    retry = setTimeout(open, delay);
  };
  const open = () => {
    clearTimeout(retry);
    source?.close();
    if (document.hidden) {
      clearTimeout(silence);
      source = null;
      return;
    }
    source = new EventSource("api/live" + (bare ? "" : query));
    source.addEventListener("hello", on((h) => {
      if (!bare) withoutBurst(); // service-a has it now
      hello(h); // may connect again, over another way
      if (!bare) return;
      bare = false;
      if (query) open();
    }));
    source.addEventListener("snapshot", on(snapshot));
    source.addEventListener("burst", on(burst));
    source.onerror = () => {
      state("lost");
      if (source?.readyState !== EventSource.CLOSED) return;
      bare = !bare;
      again(RETRY_MS);
    };
    listen();
  };
  // A burst is made once, also if this module connects again.
  const withoutBurst = () => (query = query.replace(/&n=[0-9]+/, "").replace(/.*&rate=0$/, ""));
  document.addEventListener("visibilitychange", open);
  open();
  return (via, rate, n = 0) => {
    query = rate > 0 || n > 0 ? `?via=${encodeURIComponent(via)}&rate=${rate}` + (n > 0 ? `&n=${n}` : "") : "";
    bare = false;
    open();
  };
}
