// The world of a static page, in a worker: it answers the messages of the page as the server does, with the frames of
// two ONNX graphs (see vwm/worlds/onnx_graphs.py) that onnxruntime-web computes.

import { Recording } from "./recording.js";
import { chooseProvider, describeProvider, importRuntime } from "./runtime.js";

const MOST_UNDO = 256;
const MOST_UNDO_BYTES = 2 ** 28;
const MOST_PIXELS = 16_000_000; // of an uploaded image

let ort, world, sessions, starts, recording;
let uploaded; // the frame of an uploaded image: Uint8Array [h w 3]
let current; // {state, frames, step, reward, total, terminated}
let history = [];
let times = []; // of the last steps
let last = Promise.resolve();

onmessage = ({ data: message }) => {
  const received = performance.now();
  last = last.then(async () => {
    try {
      const answer = await handlers[message.type](message, received);
      if (answer) postMessage(answer);
    } catch (error) {
      const text = error?.message ?? String(error);
      postMessage(message.type === "load" ? { failed: `The world could not be loaded: ${text}` } : answerText({ type: "error", message: text }));
    }
  });
};

const handlers = {
  async load({ description, backend }) {
    world = await (await get(description)).json();
    const address = (name) => new URL(name, description).href;
    recording = new Recording(world.hello, world.action_columns);
    let chosen = await chooseProvider(backend);
    starts = new Uint8Array(await (await get(address("starts.bin"))).arrayBuffer());
    const weights = await download(address("weights.bin"));
    const open = async (provider) => {
      const runtime = await importRuntime(address(world.runtime), provider);
      ort = runtime.ort;
      sessions = await openSessions(provider, address, weights);
      return runtime.threads;
    };
    let threads = 1;
    if (chosen.provider === "webgpu") {
      try {
        await open("webgpu");
        await checkFrames(address("check.bin"));
      } catch (error) {
        chosen = { provider: "wasm", why: `WebGPU (${chosen.why}) failed: ${error?.message ?? error}` };
      }
    }
    if (chosen.provider === "wasm") threads = await open("wasm");
    postMessage({ ready: true, provider: chosen.provider, text: describeProvider(chosen, threads) });
  },

  hello: () => answerText(world.hello),

  async reset({ start, seed }, received) {
    const context = contextOf(start);
    const began = performance.now();
    const { frame, ...state } = await sessions.reset.run({ context, seed: integers(seed) });
    [history, times] = [[], []];
    current = { state, frames: pictures(frame), step: 0, reward: 0, total: 0, terminated: false };
    recording.add(current.frames, null);
    return answer(received, began);
  },

  async step({ action, ahead }, received) {
    if (!current) throw new Error("the world has not been reset yet: reset first");
    const began = performance.now();
    if (ahead && current.terminated) return answer(received, began);
    const { frame, reward, terminated, state } = await step(current.state, action);
    remember();
    times = [...times.slice(-15), performance.now()];
    const gained = reward.data[0];
    current = { state, frames: pictures(frame), step: current.step + 1, reward: gained, total: current.total + gained, terminated: Boolean(terminated.data[0]) };
    recording.add(current.frames, action);
    return answer(received, began);
  },

  undo({ steps }, received) {
    if (!history.length) throw new Error("there is no step to go back to");
    const undone = Math.min(history.length, steps);
    history.length += 1 - undone;
    current = history.pop();
    current.frames = current.frames.slice(-1);
    recording.remove(undone * world.hello.frames_per_step, current.frames[0]);
    return answer(received, performance.now());
  },

  async record({ command, format }) {
    if (command === "download") {
      const { name, body } = await recording.file(format);
      return { header: { type: "video", name, format, frames: recording.frames.length }, body };
    }
    if (!current) throw new Error("the world has not been reset yet: reset first");
    if (command === "start") recording.start(current.frames.at(-1));
    else recording.on = false;
    return answerText({ type: "recording", recording: recording.on, recorded: recording.frames.length });
  },

  async upload({ file }) {
    const { width, height, max_upload: most } = world.hello;
    if (file.size > most) throw new Error(`the image has ${(file.size / 1e6).toFixed(1)} MB; the limit is ${most / 1e6} MB`);
    const image = await createImageBitmap(file).catch(() => null);
    if (!image) throw new Error("this file is not an image that the browser decodes");
    if (image.width * image.height > MOST_PIXELS) throw new Error(`the image has over ${MOST_PIXELS / 1e6} million pixels: make it smaller first`);
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // under transparent pixels
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    const [wide, tall] = [Math.min(image.width, Math.max(1, Math.round((image.height * width) / height))), Math.min(image.height, Math.max(1, Math.round((image.width * height) / width)))];
    const cut = [(image.width - wide) >> 1, (image.height - tall) >> 1, wide, tall];
    context.drawImage(await createImageBitmap(image, ...cut, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" }), 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    uploaded = data.filter((_, index) => index % 4 < 3);
    return { header: { type: "upload" }, body: await canvas.convertToBlob({ type: "image/png" }) };
  },
};

async function openSessions(provider, address, weights) {
  const opened = {};
  for (const name of ["reset", "step"]) {
    postMessage({ progress: name === "reset" ? "preparing the first frame" : "preparing the steps" });
    const externalData = [{ path: "weights.bin", data: weights }];
    opened[name] = await ort.InferenceSession.create(address(`${name}.onnx`), { executionProviders: [provider], externalData, logSeverityLevel: 3 });
  }
  return opened;
}

/** Compare the first frames with those of Python: drivers of graphics cards have errors of their own. */
async function checkFrames(file) {
  const expected = new Uint8Array(await (await get(file)).arrayBuffer());
  let { frame, ...state } = await sessions.reset.run({ context: contextOf(0), seed: integers(world.check.seed) });
  const shown = [frame];
  for (const action of world.check.actions) {
    ({ frame, state } = await step(state, action));
    shown.push(frame);
  }
  let [offset, difference] = [0, 0];
  for (const { data } of shown) {
    for (const value of data) difference += Math.abs(value - expected[offset++]);
  }
  if (offset !== expected.length || !(difference / offset <= world.check.largest_mean)) {
    throw new Error(`its frames differ from Python's by ${(difference / offset).toFixed(1)} of 255 on average`);
  }
}

/** Compute a step: the graph's frame, reward and terminated, and the next state. */
async function step(state, action) {
  const { frame, reward, terminated, ...changed } = await sessions.step.run({ action: tensorOf(action), ...state });
  const next = { ...state };
  for (const [name, value] of Object.entries(changed)) next[name.replace("next_", "state_")] = value;
  return { frame, reward, terminated, state: next };
}

/** The context of a start, or of the uploaded image, which is repeated. */
function contextOf(start) {
  const [count, ...shape] = world.contexts;
  const size = shape.reduce((product, side) => product * side, 1);
  let frames;
  if (start === "upload") {
    if (!uploaded) throw new Error("no image is uploaded yet: choose one first");
    frames = new Uint8Array(size);
    for (let offset = 0; offset < size; offset += uploaded.length) frames.set(uploaded, offset);
  } else {
    if (!(start >= 0 && start < count)) throw new Error(`there is no start ${start}`);
    frames = starts.slice(start * size, (start + 1) * size);
  }
  return new ort.Tensor("uint8", frames, [1, ...shape]);
}

/** Keep the current step for undoing, as far as the memory allows. */
function remember() {
  const bytes = Object.values(current.state).reduce((sum, { data }) => sum + data.byteLength, 0);
  history.push(current);
  const most = Math.max(1, Math.min(MOST_UNDO, Math.floor(MOST_UNDO_BYTES / bytes)));
  if (history.length > most) history.shift();
}

function answer(received, began) {
  const now = performance.now();
  const seconds = (times.at(-1) - times[0]) / 1000;
  const fps = times.length > 1 ? (world.hello.frames_per_step * (times.length - 1)) / seconds : 0;
  const { step, reward, total, terminated, frames } = current;
  const measured = { model_ms: now - began, wait_ms: began - received, encode_ms: 0, server_ms: now - received };
  const header = { type: "frame", step, recorded: recording.frames.length, undo: history.length, worlds: 1, fps, reward, total, terminated, recording: recording.on, ...measured };
  return { header, body: frames };
}

function answerText(header) {
  return { header, body: null };
}

/** The frames of an output uint8 [1, h, w, 3] or [1, k, h, w, 3]. */
function pictures({ data, dims }) {
  const [height, width] = dims.slice(-3);
  const pixels = height * width;
  return Array.from({ length: data.length / (3 * pixels) }, (_, frame) => {
    const image = new ImageData(width, height);
    for (let pixel = 0, from = frame * 3 * pixels; pixel < pixels; pixel++, from += 3) {
      image.data.set([data[from], data[from + 1], data[from + 2], 255], 4 * pixel);
    }
    return image;
  });
}

function tensorOf(action) {
  return Array.isArray(action) ? new ort.Tensor("float32", Float32Array.from(action), [1, action.length]) : integers(action);
}

function integers(number) {
  return new ort.Tensor("int64", BigInt64Array.of(BigInt(number)), [1]);
}

async function get(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status} ${response.statusText}`);
  return response;
}

/** Download a file, and report how much of it has come. */
async function download(address) {
  const response = await get(address);
  const total = Number(response.headers.get("Content-Length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    postMessage({ progress: `${(loaded / 1e6).toFixed(0)}${total >= loaded ? ` of ${(total / 1e6).toFixed(0)}` : ""} MB` });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
