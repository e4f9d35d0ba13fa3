// A world that the browser computes itself: it takes the place of the websocket, and a worker that of the server.

/** What `Connection` needs of a WebSocket, over a worker that answers the same messages. */
export class StaticWorld {
  /** description: address of world.json; progress(text): called while the world loads. */
  constructor(description, progress) {
    this.readyState = WebSocket.CONNECTING;
    this.worker = new Worker(new URL("./world_worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) progress(data.progress);
      else if (data.ready) this.open();
      else if (data.failed) this.close(data.failed);
      else this.onmessage({ data });
    };
    this.worker.onerror = (event) => this.close(event.message || "the page's worker could not be loaded");
    this.worker.postMessage({ type: "load", description: new URL(description, location.href).href });
  }

  send(text) {
    this.worker.postMessage(JSON.parse(text));
  }

  open() {
    this.readyState = WebSocket.OPEN;
    this.onopen();
  }

  close(message) {
    this.readyState = WebSocket.CLOSED;
    this.worker.terminate();
    this.onmessage({ data: { header: { type: "full", message }, body: null } });
    this.onclose();
  }
}
