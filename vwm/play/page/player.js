// The player: one connection to the server, one canvas.

import { Connection } from "./connection.js";
import { bind, chosen, COMMANDS, keyName } from "./keys.js";
import { LeverPanel } from "./panel.js";
import { PartsPanel } from "./parts.js";
import { drawSparkline, quantile } from "./spark.js";

const $ = (id) => document.getElementById(id);
const screen = $("screen");
const context = screen.getContext("2d", { willReadFrequently: true });
const held = new Set(); // codes of held keys, in the order they were pressed
const latencies = []; // of the last steps, in ms: {model, transport, wait, encode}

let world; // the server's hello
let connection;
let bindings = [];
let panel; // the controls of a continuous or composite world
let touched; // the action that a finger or the mouse holds
let start = 0; // index of a start, or "upload"
let due = 0; // time of the next request of a step
let shownUntil = 0; // time until which the frames of the last step are shown, where a step has several
let pending = []; // timers of the frames that are still to be shown
let timer;
let recording = false;

// ---- messages to and from the server --------------------------------------------------------------------------

const WEBP = "UklGRiAAAABXRUJQVlA4TBQAAAAvAAAAAAdQgVQIIAAKmv7HiIj+Bw=="; // one pixel

/** The formats in which the browser decodes frames. */
async function decodableImages() {
  const bytes = Uint8Array.from(atob(WEBP), (letter) => letter.charCodeAt(0));
  const webp = await createImageBitmap(new Blob([bytes], { type: "image/webp" })).catch(() => null);
  return [...(webp ? ["webp"] : []), "jpeg", "png"];
}

async function connect() {
  const hello = { type: "hello", images: await decodableImages() };
  const closed = (reason) => setMode("lost", "Not connected", `${reason ?? "The server has stopped or cannot be reached."} Click to try again.`);
  connection = new Connection(await openSocket(), hello, { receive: handleAnswer, ready: schedule, closed });
}

/** Open the connection to the server, or load the world of a static page. */
async function openSocket() {
  const description = document.body.dataset.world;
  if (!description) return new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/play`);
  setMode("connecting", "Loading", "the world");
  const { StaticWorld } = await import("./static_world.js");
  const backend = new URLSearchParams(location.search).get("backend") ?? "auto";
  return new StaticWorld(description, backend, (text) => setMode("connecting", "Loading", text), showBackend);
}

/** Show what computes the world of a static page. */
function showBackend(provider, text) {
  document.body.dataset.backend = provider;
  $("backend").textContent = text;
  $("backend").hidden = false;
}

function send(message) {
  connection.send(message);
}

async function handleAnswer(header, body, message) {
  if (header.type === "hello") showWorld(header);
  else if (header.type === "frame") await showStep(header, body, message);
  else if (header.type === "recording") showRecording(header, message);
  else if (header.type === "upload") showUpload(body);
  else if (header.type === "video") save(header, body);
  else if (header.type === "error") fail(header.message, message);
}

function fail(text, message) {
  toast(text);
  // otherwise the same step would fail again at every frame
  if (message.type === "step") setMode("paused");
}

// ---- the world and its frames ---------------------------------------------------------------------------------

function showWorld(hello) {
  world = hello;
  latencies.length = 0;
  document.title = $("title").textContent = world.title;
  const kind = world.actions.latent ? "latent actions" : world.actions.kind === "discrete" ? "actions" : "action dimensions";
  const actions = world.actions.parts ? world.actions.parts.map(({ name }) => name).join(", ") : `${world.actions.size} ${kind}`;
  $("facts").textContent = `${world.width} × ${world.height} · ${Number(world.fps.toFixed(1))} fps · ${actions}`;
  [screen.width, screen.height] = [world.width, world.height];
  panel?.close();
  ({ discrete: showLegend, continuous: showLevers, composite: showParts })[world.actions.kind]();
  showStarts();
  $("video").textContent = `Download ${videoFormat() === "mp4" ? "MP4" : "WebM"}`;
  fit();
  if (world.starts) return reset();
  setMode("ready", "Upload an image", "This world has no starts: it continues any image that you upload.");
}

/** A frame as it came: encoded, or as pixels from the worker of a static page. */
function asImage(image) {
  return image instanceof ImageData ? image : new Blob([image], { type: world.images });
}

/** Show the frames of a step, one after the other at the frame rate of the world; the next step is computed meanwhile. */
async function showFrames(images, message) {
  const bitmaps = await Promise.all(images.map((image) => createImageBitmap(asImage(image))));
  if (message.type !== "step") {
    pending.forEach(clearTimeout);
    [pending, shownUntil] = [[], 0];
  }
  const now = performance.now();
  const first = Math.max(now, shownUntil);
  shownUntil = bitmaps.length > 1 ? first + bitmaps.length * framePeriod() : 0;
  pending = pending.slice(-32);
  bitmaps.forEach((bitmap, index) => {
    const wait = first + index * framePeriod() - now;
    wait > 0 ? pending.push(setTimeout(draw, wait, bitmap)) : draw(bitmap);
  });
}

function draw(bitmap) {
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  screen.dataset.frames = Number(screen.dataset.frames ?? 0) + 1;
}

/** Milliseconds that a frame is shown; 0 for as fast as possible. */
function framePeriod() {
  const speed = Number($("speed").value);
  return speed ? 1000 / (world.fps * speed) : 0;
}

async function showStep(header, images, message) {
  await showFrames(images, message);
  if (message.type === "step") showLatency(header);
  screen.dataset.step = $("step").textContent = header.step;
  $("fps").textContent = header.fps && document.body.dataset.mode === "playing" ? header.fps.toFixed(1) : "–";
  $("total").textContent = short(header.total);
  if (header.total || header.reward) $("reward-tile").hidden = false;
  $("undo").disabled = !header.undo;
  showRecording(header, message);
  if (header.terminated && message.type === "step" && !["paused", "ended"].includes(document.body.dataset.mode)) {
    setMode("ended", "The world ended", `after ${header.step} steps. Click or press R to start again, Z to go back.`);
  }
}

/** Show how long the model and the transport took: the round trip less the server's time. */
function showLatency(header) {
  latencies.push({ model: header.model_ms, transport: header.transport_ms, wait: header.wait_ms, encode: header.encode_ms });
  if (latencies.length > 120) latencies.shift();
  const of = (part, share) => short(quantile(latencies.map((latency) => latency[part]), share));
  const both = (part) => `${of(part, 0.5)} ms, of 20 steps one takes over ${of(part, 0.95)} ms`;
  $("model").textContent = of("model", 0.5);
  $("transport").textContent = of("transport", 0.5);
  const together = header.worlds > 1 ? `, of ${header.worlds} sessions together` : "";
  $("model").parentElement.title = `the model's step${together}: ${both("model")}\nwaiting for the model: ${both("wait")}`;
  $("transport").parentElement.title = `the network and the browser: ${both("transport")}\nencoding: ${both("encode")}`;
  drawSparkline($("spark"), latencies, stepPeriod());
}

/** Milliseconds of a step in real time. */
function stepPeriod() {
  return (1000 * world.frames_per_step) / world.fps;
}

function short(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toFixed(1)));
}

function setMode(mode, title = "", text = "") {
  document.body.dataset.mode = mode;
  $("pause-text").textContent = mode === "playing" ? "Pause" : "Play";
  $("status-text").textContent = { playing: "playing", paused: "paused: each press is one step", ready: "ready", ended: "ended", lost: "not connected" }[mode] ?? mode;
  $("veil-title").textContent = title;
  $("veil-text").textContent = text;
  if (mode !== "playing") clearTimeout(timer);
  if (mode === "playing") {
    due = performance.now();
    schedule();
  }
}

// ---- playing --------------------------------------------------------------------------------------------------

/** The current action: touched, else by held keys, else the idle setting; null means to wait. */
function currentAction() {
  if (panel) return panel.read();
  const action = touched ?? chosen(bindings, held)?.index;
  if (action !== undefined) return action;
  return $("idle").value === "" ? null : Number($("idle").value);
}

/** Request the next step when it is due, at the frame rate of the world, and the server can take it. */
function schedule() {
  clearTimeout(timer);
  if (document.body.dataset.mode !== "playing") return;
  const at = Math.max(due, connection.nextStepAt);
  if (at === Infinity) return; // the next answer calls this function again
  timer = setTimeout(() => {
    if (connection.nextStepAt > performance.now()) return schedule();
    const action = currentAction();
    const period = world.frames_per_step * framePeriod();
    due = Math.max(due + period, performance.now() - period);
    if (action !== null) connection.step(action);
    schedule();
  }, at - performance.now());
}

function stepOnce() {
  if (connection.busy) return;
  const action = currentAction();
  if (action === null) return toast("No action is held, and “no key held” is set to wait.");
  if (!["paused", "ended"].includes(document.body.dataset.mode)) setMode("paused");
  connection.step(action);
}

/** Handle the press of an action key or button: while playing it is held, in a pause it is one step. */
function pressed() {
  showHeld();
  if (document.body.dataset.mode === "paused") stepOnce();
  else begin();
}

function begin() {
  if (document.body.dataset.mode === "ready" && screen.dataset.step !== "-1") setMode("playing");
}

function reset() {
  if (!$("seed").checkValidity() || $("seed").value === "") return toast("The seed must be an integer from 0 to 4294967295.");
  send({ type: "reset", start, seed: Number($("seed").value) });
  for (const button of $("starts").children) button.classList.toggle("on", button.dataset.start === String(start));
  if (["playing", "paused"].includes(document.body.dataset.mode)) return;
  const touch = matchMedia("(pointer: coarse)").matches;
  setMode("ready", "Play", touch ? "Tap here or hold an action." : "Click here or press an action key.");
}

const commands = {
  pause() {
    const mode = document.body.dataset.mode;
    if (mode === "connecting") return;
    if (mode === "lost") connect();
    else if (mode === "ended") reset();
    else if (screen.dataset.step === "-1" && !world?.starts) $("file").click();
    else setMode(mode === "playing" ? "paused" : "playing");
  },
  single: stepOnce,
  undo(steps = 1) {
    if (connection.waitingFor === "undo" || connection.queue.length || $("undo").disabled) return;
    setMode("paused");
    send({ type: "undo", steps: steps + connection.stepsAhead }); // back from the shown step, not from those on their way
  },
  reset,
  record() {
    send({ type: "record", command: recording ? "stop" : "start" });
  },
};

addEventListener("keydown", (event) => {
  if (!world || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number], select")) return;
  if (event.target.matches("input[type=range]") && event.code.startsWith("Arrow")) return; // the slider's own keys
  const used = panel ? panel.uses(event.code) : bindings.some(({ keys }) => keys.flat().includes(event.code));
  if (used) {
    event.preventDefault();
    const fresh = !held.has(event.code);
    held.add(event.code);
    panel?.press?.();
    if (fresh || document.body.dataset.mode === "paused") pressed();
  } else if (event.code === "Space" && !event.target.matches("button") && !event.repeat) {
    event.preventDefault();
    commands.pause();
  } else if (COMMANDS[event.code] && (!event.repeat || ["undo", "single"].includes(COMMANDS[event.code]))) {
    event.preventDefault();
    COMMANDS[event.code] === "undo" ? commands.undo(event.shiftKey ? 10 : 1) : commands[COMMANDS[event.code]]();
  }
});
addEventListener("keyup", (event) => {
  held.delete(event.code);
  showHeld();
});
addEventListener("blur", () => {
  held.clear();
  touched = undefined;
  panel?.letGo();
  showHeld();
});
document.addEventListener("visibilitychange", () => {
  // a hidden page pauses the world
  if (document.hidden && document.body.dataset.mode === "playing") setMode("paused");
});

for (const name of ["pause", "single", "reset", "record"]) $(name).addEventListener("click", () => commands[name]());
$("veil").addEventListener("click", (event) => {
  commands.pause();
  // a click of the mouse may lock it to the picture, as a tap may not
  if (document.body.dataset.mode === "playing" && event.pointerType === "mouse") panel?.lock?.();
});
// A clicked button keeps the focus, and the space bar would press it again instead of pausing.
addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
// A press is one step back at once, and a long one rewinds; the click event at its end does not count.
let rewind;
const stopRewinding = () => clearTimeout(rewind);
const keepRewinding = () => {
  commands.undo();
  rewind = setTimeout(keepRewinding, 60);
};
$("undo").addEventListener("pointerdown", (event) => {
  if (event.button) return;
  commands.undo();
  rewind = setTimeout(keepRewinding, 350);
});
for (const end of ["pointerup", "pointerleave", "pointercancel"]) $("undo").addEventListener(end, stopRewinding);
$("undo").addEventListener("click", (event) => event.detail || commands.undo()); // clicks from the keyboard have no pointer event

// ---- actions --------------------------------------------------------------------------------------------------

function showLegend() {
  const { names } = world.actions;
  panel = undefined;
  $("release-row").hidden = true;
  bindings = bind(names, world.idle);
  const pad = bindings.some(({ place, symbol }) => place && symbol);
  $("pad").replaceChildren();
  $("legend").replaceChildren();
  $("sliders").replaceChildren();
  $("legend").classList.toggle("wide", names.some((name) => name.length > 10));
  for (const binding of bindings) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "act";
    button.dataset.action = binding.index;
    const name = shown(binding.name);
    button.title = binding.label ? `${name} (${binding.label})` : name;
    const inPad = pad && binding.place;
    button.append(element("span", inPad ? (binding.symbol ?? "·") : name));
    if (binding.label) button.append(element("kbd", binding.label));
    if (inPad) [button.style.gridColumn, button.style.gridRow] = binding.place;
    hold(button, binding.index);
    $(inPad ? "pad" : "legend").append(button);
  }
  $("keys-hint").hidden = !pad;
  $("keys-hint").textContent = hint(bindings.filter(({ symbol }) => symbol));
  const settings = names.map((name, index) => new Option(shown(name), index));
  $("idle").replaceChildren(...settings, new Option("wait", ""));
  $("idle").value = world.idle ?? 0;
  $("idle-row").hidden = false;
}

/** Describe the keys of the pad: the arrows and their alternatives. */
function hint(directions) {
  const single = directions.filter(({ keys }) => keys.length === 1).map(({ keys }) => keys[0]);
  const sets = [0, 1].map((choice) => single.map((keys) => keys[choice]).filter(Boolean).map(keyName).join(" "));
  return `${sets.filter(Boolean).join("  or  ")}${directions.length > single.length ? ", two at once for a diagonal" : ""}`;
}

function shown(name) {
  return ["", "·"].includes(name.trim()) ? "do nothing" : name;
}

/** Make a button hold its action while it is pressed. */
function hold(button, action) {
  button.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId);
    touched = action;
    pressed();
  });
  const release = () => {
    if (touched === action) touched = undefined;
    showHeld();
  };
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(end, release);
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

function showHeld() {
  if (panel) return; // it shows what is held by itself
  const now = touched ?? chosen(bindings, held)?.index;
  for (const button of document.querySelectorAll(".act")) button.classList.toggle("on", Number(button.dataset.action) === now);
}

function showLevers() {
  const { names, rest } = world.actions;
  bindings = [];
  $("pad").replaceChildren();
  $("legend").replaceChildren();
  $("idle-row").hidden = true;
  $("keys-hint").hidden = $("release-row").hidden = false;
  const situation = () => ({ held, playing: document.body.dataset.mode === "playing", stay: $("release").value === "stay" });
  const elements = { sliders: $("sliders"), stick: $("stick"), knob: $("knob") };
  panel = new LeverPanel({ names, rest }, elements, situation, begin);
  $("keys-hint").textContent = panel.hint;
}

function showParts() {
  bindings = [];
  $("pad").replaceChildren();
  $("sliders").replaceChildren();
  $("legend").classList.remove("wide");
  $("idle-row").hidden = $("release-row").hidden = true;
  const situation = () => ({ held, playing: document.body.dataset.mode === "playing", stay: false });
  const elements = { legend: $("legend"), choices: $("choices"), sliders: $("sliders"), stick: $("stick"), knob: $("knob"), screen };
  panel = new PartsPanel(world.actions, elements, situation, (press) => (press ? pressed() : begin()));
  $("keys-hint").hidden = !panel.hint;
  $("keys-hint").textContent = panel.hint;
}

// ---- starts, recording ----------------------------------------------------------------------------------------

function showStarts() {
  const shipped = Array.from({ length: world.starts }, (_, index) => startButton(index, `starts/${index}.png`));
  const add = Object.assign(element("button", "+"), { type: "button", className: "start add", title: "upload an image as the start" });
  add.addEventListener("click", () => $("file").click());
  $("starts").replaceChildren(...shipped, ...(world.max_upload ? [add] : []));
  if (start === "upload" || start >= world.starts) start = 0;
}

function startButton(number, url) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "start", title: number === "upload" ? "your image" : `start ${number + 1}` });
  button.dataset.start = number;
  button.append(Object.assign(new Image(), { src: url, alt: button.title }));
  button.addEventListener("click", () => {
    start = number;
    reset();
  });
  return button;
}

function upload(file) {
  if (!file || !world?.max_upload) return;
  if (file.size > world.max_upload) return toast(`This file has ${(file.size / 1e6).toFixed(1)} MB; the limit is ${world.max_upload / 1e6} MB.`);
  send(file);
}

function showUpload(body) {
  $("starts").querySelector("[data-start=upload]")?.remove();
  const url = URL.createObjectURL(new Blob([body], { type: "image/png" }));
  $("starts").lastElementChild.before(startButton("upload", url));
  start = "upload";
  reset();
}

$("file").addEventListener("change", () => {
  upload($("file").files[0]);
  $("file").value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  upload(event.dataTransfer.files[0]);
});
$("seed").addEventListener("change", reset);
$("seed").addEventListener("keydown", (event) => event.key === "Enter" && $("seed").blur());
$("dice").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 2 ** 32);
  reset();
});
for (const setting of ["idle", "release", "speed"]) $(setting).addEventListener("change", () => $(setting).blur());

function showRecording({ recording: on, recorded }, message) {
  if (recording && !on && message.type === "step") toast("The recording is full and has stopped.");
  recording = on;
  $("rec-badge").hidden = !on;
  $("record").setAttribute("aria-pressed", on);
  $("record-text").textContent = on ? "Stop" : "Record";
  $("recording-panel").hidden = !recorded;
  $("recorded").textContent = `${recorded} frames · ${(recorded / world.fps).toFixed(1)} s`;
}

/** The format in which the server, or the worker of a static page, writes videos. */
function videoFormat() {
  return document.body.dataset.world ? "webm" : "mp4";
}

for (const button of ["video", "gif", "csv"]) {
  $(button).addEventListener("click", () => send({ type: "record", command: "download", format: button === "video" ? videoFormat() : button }));
}

function save({ name, format }, body) {
  const url = URL.createObjectURL(new Blob([body], { type: { gif: "image/gif", mp4: "video/mp4", webm: "video/webm", csv: "text/csv" }[format] }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// ---- elements, messages, layout -------------------------------------------------------------------------------

function element(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

let toastTimer;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 6000);
}

/** Scale the canvas by the largest integer number of device pixels per world pixel, so that all pixels are equal. */
function fit() {
  const density = devicePixelRatio || 1;
  const narrow = matchMedia("(max-width: 860px)").matches;
  const width = $("stage").clientWidth;
  const height = narrow ? innerHeight * 0.5 : innerHeight - 150;
  const room = Math.min(width / world.width, height / world.height) * density;
  const scale = (room >= 1 ? Math.floor(room) : room) / density;
  screen.style.width = `${world.width * scale}px`;
  screen.style.height = `${world.height * scale}px`;
  drawSparkline($("spark"), latencies, stepPeriod());
}
addEventListener("resize", () => world && fit());

connect();
