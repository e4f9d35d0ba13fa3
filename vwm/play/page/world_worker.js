// The world of a static page, in a worker: it answers the messages of the page as the server does, with the frames of
// two ONNX graphs (see vwm/worlds/onnx_graphs.py) that onnxruntime-web computes.

const MOST_UNDO = 256;
const MOST_UNDO_BYTES = 2 ** 28;
const MOST_THREADS = 4;

let ort, world, sessions, starts;
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
  async load({ description }) {
    world = await (await get(description)).json();
    const address = (name) => new URL(name, description).href;
    const runtime = address(world.runtime);
    ort = await import(runtime);
    ort.env.wasm.wasmPaths = runtime.slice(0, runtime.lastIndexOf("/") + 1);
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
    ort.env.logLevel = "error";
    starts = new Uint8Array(await (await get(address("starts.bin"))).arrayBuffer());
    const weights = await download(address("weights.bin"));
    sessions = {};
    for (const name of ["reset", "step"]) {
      postMessage({ progress: name === "reset" ? "preparing the first frame" : "preparing the steps" });
      const externalData = [{ path: "weights.bin", data: weights }];
      sessions[name] = await ort.InferenceSession.create(address(`${name}.onnx`), { executionProviders: ["wasm"], externalData, logSeverityLevel: 3 });
    }
    postMessage({ ready: true });
  },

  hello: () => answerText(world.hello),

  async reset({ start, seed }, received) {
    const [count, ...shape] = world.contexts;
    const size = shape.reduce((product, side) => product * side, 1);
    if (!(start >= 0 && start < count)) throw new Error(`there is no start ${start}`);
    const context = new ort.Tensor("uint8", starts.slice(start * size, (start + 1) * size), [1, ...shape]);
    const began = performance.now();
    const { frame, ...state } = await sessions.reset.run({ context, seed: integers(seed) });
    [history, times] = [[], []];
    current = { state, frames: pictures(frame), step: 0, reward: 0, total: 0, terminated: false };
    return answer(received, began);
  },

  async step({ action, ahead }, received) {
    if (!current) throw new Error("the world has not been reset yet: reset first");
    const began = performance.now();
    if (ahead && current.terminated) return answer(received, began);
    const { frame, reward, terminated, ...next } = await sessions.step.run({ action: tensorOf(action), ...current.state });
    const state = { ...current.state };
    for (const [name, value] of Object.entries(next)) state[name.replace("next_", "state_")] = value;
    remember();
    times = [...times.slice(-15), performance.now()];
    const gained = reward.data[0];
    current = { state, frames: pictures(frame), step: current.step + 1, reward: gained, total: current.total + gained, terminated: Boolean(terminated.data[0]) };
    return answer(received, began);
  },

  undo({ steps }, received) {
    if (!history.length) throw new Error("there is no step to go back to");
    history.length = Math.max(history.length - steps, 0) + 1;
    current = history.pop();
    current.frames = current.frames.slice(-1);
    return answer(received, performance.now());
  },
};

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
  const header = { type: "frame", step, recorded: 0, undo: history.length, worlds: 1, fps, reward, total, terminated, recording: false, ...measured };
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
