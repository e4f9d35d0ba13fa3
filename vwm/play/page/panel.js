// The controls of the levers on the page: sliders, a stick for mouse and finger, and the gamepad.

import { Levers } from "./levers.js";

const DEAD = 0.12; // the stick of a gamepad rarely returns to exactly 0
const KEYS = [
  { ArrowLeft: -1, KeyA: -1, ArrowRight: 1, KeyD: 1 },
  { ArrowDown: -1, KeyS: -1, ArrowUp: 1, KeyW: 1 },
];

export class LeverPanel {
  /**
   * names, rest: of the levers; sliders, stick, knob: elements; situation: returns {held, playing, stay};
   * begin: called when the stick is grabbed.
   */
  constructor({ names, rest }, { sliders, stick, knob }, situation, begin) {
    this.levers = new Levers(names, rest);
    this.situation = situation;
    [this.stick, this.knob] = [stick, knob];
    this.sides = KEYS.slice(0, rest.length);
    this.rows = names.map((name, lever) => this.row(name, lever));
    sliders.replaceChildren(...this.rows.map(({ label }) => label));
    stick.hidden = rest.length < 2;
    const { brake } = this.levers;
    const words = { up: names[1], down: brake === undefined ? names[1] : names[brake], left: names[0], right: names[0] };
    for (const side of stick.querySelectorAll("[data-side]")) side.textContent = words[side.dataset.side];
    this.abort = new AbortController();
    this.begin = begin;
    this.listen();
    this.draw();
  }

  /** Whether a key moves a lever. */
  uses(code) {
    return this.sides.some((side) => code in side);
  }

  /** A description of the keys. */
  get hint() {
    const { left, up, down } = Object.fromEntries([...this.stick.querySelectorAll("[data-side]")].map((side) => [side.dataset.side, side.textContent]));
    const vertical = up === down ? [`↑ ↓ ${up}`] : [`↑ ${up}`, `↓ ${down}`];
    return [`← → ${left}`, ...(this.sides.length > 1 ? vertical : [])].join(" · ") + (this.sides.length > 1 ? "  or  W A S D" : "  or  A D");
  }

  /** Return the current action. */
  read() {
    const { held, playing, stay } = this.situation();
    const keys = KEYS.map((side, index) => (index < this.sides.length ? [...held].reduce((sum, code) => sum + (side[code] ?? 0), 0) : 0)).map(Math.sign);
    this.levers.advance(performance.now(), { keys, gamepad: gamepad(), playing, stay });
    return this.levers.values.map((value) => Math.round(value * 1e4) / 1e4);
  }

  /** Release all sliders and the stick. */
  letGo() {
    this.levers.grabbed.clear();
    this.levers.letGo();
  }

  /** Remove the controls before another world is shown. */
  close() {
    this.abort.abort();
    this.stick.hidden = true;
  }

  row(name, lever) {
    const slider = Object.assign(document.createElement("input"), { type: "range", min: -1, max: 1, step: 0.01, value: this.levers.rest[lever] });
    const value = document.createElement("span");
    const label = Object.assign(document.createElement("label"), { textContent: name });
    label.append(value, slider);
    slider.addEventListener("input", () => this.levers.put(lever, Number(slider.value)));
    slider.addEventListener("pointerdown", () => this.levers.grabbed.add(lever));
    for (const end of ["pointerup", "pointercancel", "change"]) slider.addEventListener(end, () => this.levers.grabbed.delete(lever));
    // otherwise the arrow keys would move the slider that the mouse released
    slider.addEventListener("pointerup", () => slider.blur());
    slider.addEventListener("dblclick", () => this.levers.put(lever, this.levers.rest[lever]));
    slider.title = "double-click to reset";
    return { label, slider, value };
  }

  listen() {
    const { signal } = this.abort;
    const on = (event, react) => this.stick.addEventListener(event, react, { signal });
    const point = ({ clientX, clientY }) => {
      const { left, top, width, height } = this.stick.getBoundingClientRect();
      const reach = (at, low, size) => Math.max(-1, Math.min(1, ((at - low) / size - 0.5) * 2.5)); // the full value before the edge
      this.levers.pad = [reach(clientX, left, width), -reach(clientY, top, height)];
    };
    on("pointerdown", (event) => {
      if (event.button) return;
      this.stick.setPointerCapture(event.pointerId);
      point(event);
      this.begin();
    });
    on("pointermove", (event) => this.levers.pad && point(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) on(end, () => this.levers.letGo());
    on("contextmenu", (event) => event.preventDefault());
  }

  /** Show the values of the levers, at every animation frame. */
  draw() {
    if (this.abort.signal.aborted) return;
    const values = this.read();
    if (gamepad()?.stick.some((amount) => Math.abs(amount) > 0.5)) this.begin();
    this.rows.forEach(({ slider, value }, lever) => {
      if (!this.levers.grabbed.has(lever)) slider.value = values[lever];
      value.textContent = values[lever].toFixed(2);
    });
    const [right, up] = this.levers.knob;
    this.knob.style.translate = `calc(${right * 40}cqw - 50%) calc(${-up * 40}cqh - 50%)`;
    requestAnimationFrame(() => this.draw());
  }
}

/**
 * Return {stick, second, pressed} of the first connected gamepad: two sticks, each [right, up], where the triggers are up
 * and down, too, and the cross moves the first; and whether each button is pressed.
 */
export function gamepad() {
  const found = [...(navigator.getGamepads?.() ?? [])].find((pad) => pad?.connected);
  if (!found) return null;
  const axis = (index) => (Math.abs(found.axes[index] ?? 0) < DEAD ? 0 : found.axes[index]);
  const trigger = (index) => found.buttons[index]?.value ?? 0;
  const cross = [trigger(15) - trigger(14), trigger(12) - trigger(13)];
  const up = Math.max(-1, Math.min(1, trigger(7) - trigger(6) - axis(1) + cross[1]));
  const right = Math.max(-1, Math.min(1, axis(0) + cross[0]));
  return { stick: [right, up], second: [axis(2), -axis(3)], pressed: found.buttons.map((button) => (button?.value ?? 0) > 0.5) };
}
