// A world that the browser computes itself: it takes the place of the websocket, and a worker that of the server.

/** What `Connection` needs of a WebSocket, over a worker that answers the same messages. */
export class StaticWorld {
  /**
   * description: address of world.json; backend: auto, webgpu or wasm; progress(text): called while the world loads;
   * runs(provider, text): called with what computes it.
   */
  constructor(description, backend, progress, runs) {
    this.readyState = WebSocket.CONNECTING;
    this.worker = new Worker(new URL("./world_worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) progress(data.progress);
      else if (data.ready) this.open(runs(data.provider, data.text));
      else if (data.failed) this.close(data.failed);
      else this.onmessage({ data });
    };
    this.worker.onerror = (event) => this.close(event.message || "the page's worker could not be loaded");
    this.worker.postMessage({ type: "load", description: new URL(description, location.href).href, backend });
  }

  send(message) {
    this.worker.postMessage(message instanceof Blob ? { type: "upload", file: message } : JSON.parse(message));
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
