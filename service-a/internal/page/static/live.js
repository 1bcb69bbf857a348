// The connection to api/live. The browser reconnects by itself after a broken stream; after an HTTP error, or if snapshots
// stop coming, this module connects again.

const SILENCE_MS = 6000; // snapshots come every 500 ms
const RETRY_MS = 2000;

// connect calls hello and snapshot with each event, and state with "live" or "lost".
export function connect({ hello, snapshot, state }) {
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
    source = new EventSource("api/live");
    source.addEventListener("hello", on(hello));
    source.addEventListener("snapshot", on(snapshot));
    source.onerror = () => {
      state("lost");
      if (source?.readyState === EventSource.CLOSED) again(RETRY_MS);
    };
    listen();
  };
  open();
}
