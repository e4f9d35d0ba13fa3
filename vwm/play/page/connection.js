// The websocket: messages in order, their answers, and when the next step may be asked for.
//
// A message waits for the answer to the one before, so that a slow model slows play down instead of filling a queue. On
// a slow network that would waste the time of the transport. So the next step may be asked for while the last answer is
// still on its way: as soon as the server has finished with it, which it does within the longest of its recent times.
// Its action is read when it is due, as always, so nothing reacts later; and the server never queues steps.

const RECENT = 16; // steps of which the longest counts
const MOST_AHEAD = 8; // steps that are not answered yet

export class Connection {
  /**
   * socket: a WebSocket that is about to open, or what takes its place; hello: the first message; receive(header, body, message): called with every answer and the
   * message that it answers, one after the other; ready(): called when that is done; closed(reason): called once, with
   * what the server said.
   */
  constructor(socket, hello, { receive, ready, closed }) {
    this.queue = [];
    this.unanswered = []; // {message, sent: its time}, the oldest first
    this.serverTimes = []; // of the last steps, in ms
    this.receive = receive;
    this.ready = ready;
    let reason;
    let handled = Promise.resolve();
    this.socket = socket;
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.send(hello);
    this.socket.onmessage = ({ data }) => {
      const now = performance.now();
      const answer = readAnswer(data);
      if (answer.header.type === "full") reason = answer.header.message;
      else handled = handled.then(() => this.handle(answer, now));
    };
    this.socket.onclose = () => closed(reason);
  }

  /** Whether a message is not answered yet, or not even sent. */
  get busy() {
    return this.unanswered.length > 0 || this.queue.length > 0;
  }

  /** Number of steps that are not answered yet. */
  get stepsAhead() {
    return this.unanswered.filter(({ message }) => message.type === "step").length;
  }

  /** The type of the message that waits for its answer longest; undefined where there is none. */
  get waitingFor() {
    return this.unanswered[0]?.message.type;
  }

  /** The time from which the next step may be asked for; infinite where an answer has to come first. */
  get nextStepAt() {
    if (this.queue.length) return Infinity;
    if (!this.unanswered.length) return 0;
    const waits = this.stepsAhead < this.unanswered.length || this.stepsAhead >= MOST_AHEAD;
    return waits || this.serverTimes.length < RECENT ? Infinity : this.unanswered.at(-1).sent + Math.max(...this.serverTimes);
  }

  /** Send a message (an object, or a file as a Blob) once all others are answered. */
  send(message) {
    this.queue.push(message);
    this.flush();
  }

  /** Ask for a step now; allowed from `nextStepAt` on. */
  step(action) {
    this.transmit(this.unanswered.length ? { type: "step", action, ahead: true } : { type: "step", action });
  }

  flush() {
    if (!this.unanswered.length && this.queue.length && this.socket.readyState === WebSocket.OPEN) this.transmit(this.queue.shift());
  }

  transmit(message) {
    this.unanswered.push({ message, sent: performance.now() });
    this.socket.send(message instanceof Blob ? message : JSON.stringify(message));
  }

  async handle({ header, body }, now) {
    const { message, sent } = this.unanswered[0];
    if (header.type === "frame") header.transport_ms = Math.max(0, now - sent - header.server_ms);
    if (message.type === "step" && header.type === "frame") {
      this.serverTimes.push(header.server_ms);
      if (this.serverTimes.length > RECENT) this.serverTimes.shift();
    }
    try {
      await this.receive(header, body, message);
    } finally {
      this.unanswered.shift();
      this.flush();
      this.ready();
    }
  }
}

/** Return {header, body} of an answer: JSON, binary, or both as they are from the worker of a static page. */
function readAnswer(data) {
  if (typeof data === "string") return { header: JSON.parse(data), body: null };
  return data instanceof ArrayBuffer ? unpack(data) : data;
}

/** Split a binary answer into header and body; see answers.py. */
function unpack(buffer) {
  const view = new DataView(buffer);
  if (view.getUint8(0) === 1) return unpackFrames(view, buffer);
  const length = view.getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { header, body: new Uint8Array(buffer, 4 + length) };
}

const NUMBERS = [
  ["step", "Uint32", 4], ["recorded", "Uint32", 8], ["undo", "Uint16", 12], ["worlds", "Uint16", 14], ["fps", "Float32", 16],
  ["reward", "Float64", 20], ["total", "Float64", 28],
  ["model_ms", "Float32", 36], ["wait_ms", "Float32", 40], ["encode_ms", "Float32", 44], ["server_ms", "Float32", 48],
];
const SIZES_AT = 52;

function unpackFrames(view, buffer) {
  const [flags, count] = [view.getUint8(1), view.getUint16(2)];
  const header = { type: "frame", terminated: Boolean(flags & 1), recording: Boolean(flags & 2) };
  for (const [name, type, offset] of NUMBERS) header[name] = view[`get${type}`](offset);
  let offset = SIZES_AT + 4 * count;
  const images = Array.from({ length: count }, (_, index) => {
    const image = new Uint8Array(buffer, offset, view.getUint32(SIZES_AT + 4 * index));
    offset += image.length;
    return image;
  });
  return { header, body: images };
}
