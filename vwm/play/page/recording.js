// The recording of a static page: frames and actions, as the server's session keeps them, and the files made of them.

import { encodeGif } from "./gif.js";
import { encodeWebm } from "./webm.js";

const MOST_BYTES = 2 ** 28; // of the frames
const MOST_GIF_FRAMES = 1000;

export class Recording {
  /** world: width, height, fps, actions; columns: the first line of the table of actions. */
  constructor({ width, height, fps, actions }, columns) {
    this.fps = fps;
    this.columns = columns;
    this.rest = actions.kind === "discrete" ? 0 : actions.rest;
    this.most = Math.max(1, Math.floor(MOST_BYTES / (4 * width * height)));
    this.frames = []; // ImageData
    this.actions = []; // that led to the frames; null where none did
    this.on = false;
  }

  start(frame) {
    [this.frames, this.actions, this.on] = [[frame], [null], true];
  }

  /** Add the frames of a step, or of a reset, whose action is null. */
  add(frames, action) {
    if (!this.on) return;
    this.frames.push(...frames);
    this.actions.push(...frames.map(() => action));
    this.on = this.frames.length < this.most;
  }

  /** Take back the last frames; after an undo to before the recording, it starts with the shown frame. */
  remove(count, frame) {
    if (!this.on) return;
    const kept = this.frames.length - count;
    if (kept < 1) return this.start(frame);
    this.frames.length = this.actions.length = kept;
  }

  /** Return a file of a format (webm, gif, csv): {name, body}. */
  async file(format) {
    if (!this.frames.length) throw new Error("nothing is recorded yet: start a recording and play");
    if (format === "csv") return { name: "play.actions.csv", body: new Blob([this.table()]) };
    if (format === "webm") return { name: "play.webm", body: await encodeWebm(this.frames, this.fps) };
    if (this.frames.length > MOST_GIF_FRAMES) {
      throw new Error(`a GIF may have ${MOST_GIF_FRAMES} frames, the recording has ${this.frames.length}: download it as a video`);
    }
    return { name: "play.gif", body: encodeGif(this.frames, this.fps) };
  }

  /** The action taken at each frame, as CSV; at the last one, where none was, the rest. */
  table() {
    const taken = [...this.actions.slice(1), null].map((action) => action ?? this.rest);
    const decimal = (value) => (Number.isInteger(value) ? value.toFixed(1) : String(Number(value.toFixed(7))));
    const rows = taken.map((action) => (Array.isArray(action) ? action.map(decimal).join(",") : String(action)));
    return `${[this.columns, ...rows].join("\n")}\n`;
  }
}
