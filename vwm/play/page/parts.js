// The controls of a composite action: keys that can be held together, choices, axes, and a relative pointer.
//
// The action is one row of numbers, the columns of its parts side by side. Keys come from the keyboard, from buttons
// (several fingers hold several) and from a gamepad. The pointer is what the mouse moved since the last step, locked to the
// picture or dragged over it, a finger's way, or the right stick of a gamepad.

import { bind } from "./keys.js";
import { gamepad, LeverPanel } from "./panel.js";

const REACH = 0.1; // share of the picture's width that is a full movement of the pointer in one step
const BUTTONS = [0, 1, 2, 3, 4, 5, 6, 7]; // of a gamepad, for keys without a direction
const DIRECTIONS = { LEFT: [0, -1], RIGHT: [0, 1], UP: [1, 1], DOWN: [1, -1], FORWARD: [1, 1], BACK: [1, -1] }; // side of the left stick, and its sign

export class PartsPanel {
  /**
   * parts: of the action; rest: of its columns; elements: {legend, choices, sliders, stick, knob, screen}; situation and
   * begin: see LeverPanel.
   */
  constructor({ parts, rest }, elements, situation, begin) {
    let column = 0;
    this.parts = parts.map((part) => {
      const first = column;
      column += part.kind === "choice" ? 1 : part.size;
      return { ...part, first };
    });
    this.row = [...rest];
    Object.assign(this, { elements, situation, begin });
    this.touched = new Map(); // pointer to the column of the key whose button it holds
    this.moved = [0, 0]; // movement of the pointer that no step has taken yet, in CSS pixels
    this.abort = new AbortController();
    this.bindKeys();
    this.showChoices();
    this.makeLevers(begin);
    if (this.parts.some(({ kind }) => kind === "pointer")) this.listenToPointer();
    this.listenToWheel();
    this.draw();
  }

  /** Assign keys of the keyboard: to each key of a part, and to each choice. */
  bindKeys() {
    const keys = this.parts.filter(({ kind }) => kind === "keys").flatMap((part) => part.names.map((name, index) => ({ name, column: part.first + index })));
    const choices = this.parts.filter(({ kind }) => kind === "choice").flatMap((part) => part.names.map((name, index) => ({ name, part, index })));
    const targets = [...keys, ...choices];
    const bindings = bind(targets.map(({ name }) => name), null).map((binding, index) => ({ ...binding, ...targets[index], index: targets[index].index }));
    this.keys = bindings.filter(({ column }) => column !== undefined);
    this.choices = bindings.filter(({ part }) => part);
    let free = 0;
    for (const key of this.keys) key.stick = DIRECTIONS[key.name.toUpperCase()] ?? null;
    for (const key of this.keys) key.pad = key.stick ? null : BUTTONS[free++];
    this.elements.legend.replaceChildren(...this.keys.map((key) => this.keyButton(key)));
  }

  keyButton(key) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "act" });
    button.dataset.key = key.name;
    button.append(Object.assign(document.createElement("span"), { textContent: key.name }));
    if (key.label) button.append(Object.assign(document.createElement("kbd"), { textContent: key.label }));
    button.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      button.setPointerCapture(event.pointerId);
      this.touched.set(event.pointerId, key.column);
      this.begin(true);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(end, (event) => this.touched.delete(event.pointerId));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    key.button = button;
    return button;
  }

  /** Show a row of buttons for each choice; the pressed one stays. */
  showChoices() {
    const rows = this.parts.filter(({ kind }) => kind === "choice").map((part) => {
      const row = Object.assign(document.createElement("div"), { className: "choice" });
      row.append(Object.assign(document.createElement("span"), { textContent: part.name, className: "quiet" }));
      for (const choice of this.choices.filter((choice) => choice.part === part)) {
        const button = Object.assign(document.createElement("button"), { type: "button", className: "act", title: choice.label ? `${choice.name} (${choice.label})` : choice.name });
        button.dataset.choice = choice.name;
        button.append(Object.assign(document.createElement("span"), { textContent: choice.name }));
        if (choice.label) button.append(Object.assign(document.createElement("kbd"), { textContent: choice.label }));
        button.addEventListener("click", () => this.choose(part, choice.index));
        choice.button = button;
        row.append(button);
      }
      return row;
    });
    this.elements.choices.replaceChildren(...rows);
  }

  choose(part, index) {
    this.row[part.first] = index;
    this.begin(true);
  }

  /** Sliders and a stick for the axes of all parts; the keyboard belongs to the keys where there are any. */
  makeLevers(begin) {
    this.axes = this.parts.filter(({ kind }) => kind === "axes").flatMap((part) => part.names.map((name, index) => ({ name, column: part.first + index })));
    if (!this.axes.length) return;
    const held = new Set();
    const situation = () => ({ ...this.situation(), ...(this.keys.length ? { held } : {}) });
    const { sliders, stick, knob } = this.elements;
    this.levers = new LeverPanel({ names: this.axes.map(({ name }) => name), rest: this.axes.map(({ column }) => this.row[column]) }, { sliders, stick, knob }, situation, begin);
  }

  /** Take the mouse's and a finger's movements over the picture, and the mouse's alone once it is locked to it. */
  listenToPointer() {
    const { screen } = this.elements;
    const { signal } = this.abort;
    const dragging = new Map(); // pointer to its last position
    const move = (dx, dy) => (this.moved = [this.moved[0] + dx, this.moved[1] + dy]);
    screen.classList.add("pointed");
    addEventListener("mousemove", (event) => document.pointerLockElement === screen && move(event.movementX, event.movementY), { signal });
    screen.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      dragging.set(event.pointerId, [event.clientX, event.clientY]);
      screen.setPointerCapture(event.pointerId);
      if (event.pointerType === "mouse") this.lock();
    }, { signal });
    screen.addEventListener("pointermove", (event) => {
      const last = dragging.get(event.pointerId);
      if (!last || document.pointerLockElement === screen) return;
      move(event.clientX - last[0], event.clientY - last[1]);
      dragging.set(event.pointerId, [event.clientX, event.clientY]);
    }, { signal });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) screen.addEventListener(end, (event) => dragging.delete(event.pointerId), { signal });
  }

  /** Lock the mouse to the picture until Escape is pressed; where a browser refuses, the mouse is dragged instead. */
  lock() {
    const { screen } = this.elements;
    if (!this.parts.some(({ kind }) => kind === "pointer") || !screen.requestPointerLock || document.pointerLockElement) return;
    Promise.resolve(screen.requestPointerLock()).catch(() => {});
  }

  /** The wheel over the picture goes through the first choice. */
  listenToWheel() {
    const part = this.parts.find(({ kind }) => kind === "choice");
    if (!part) return;
    this.elements.screen.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.deltaY) this.choose(part, (this.row[part.first] + Math.sign(event.deltaY) + part.size) % part.size);
    }, { signal: this.abort.signal, passive: false });
  }

  /** Whether a key belongs to a part; the key of a choice chooses it. */
  uses(code) {
    return [...this.keys, ...this.choices].some(({ keys }) => keys.flat().includes(code)) || (!this.keys.length && Boolean(this.levers?.uses(code)));
  }

  /** A description of keyboard and pointer. */
  get hint() {
    const pointer = this.parts.some(({ kind }) => kind === "pointer") ? ["click the picture to move with the mouse, Esc to stop"] : [];
    const wheel = this.parts.find(({ kind }) => kind === "choice");
    return [...(this.keys.length ? ["keys can be held together"] : []), ...pointer, ...(wheel ? [`wheel: ${wheel.name}`] : [])].join(" · ");
  }

  /** Return the current action, and take the pointer's movement. */
  read() {
    const row = this.look();
    for (const part of this.parts.filter(({ kind }) => kind === "pointer")) {
      const reach = this.reach;
      // a step takes one full movement at most, and the next one the rest of a flick
      const taken = this.moved.map((way, side) => Math.max(-1, Math.min(1, way / reach + (this.pad?.second[side] ?? 0) * (side ? -1 : 1))));
      this.moved = this.moved.map((way) => Math.max(-reach, Math.min(reach, way - Math.max(-reach, Math.min(reach, way)))));
      row.splice(part.first, 2, ...taken.map(round));
    }
    return row;
  }

  /** A full movement of the pointer in CSS pixels. */
  get reach() {
    return REACH * this.elements.screen.clientWidth || 1;
  }

  /** Take the choices whose keys are held; called at each press, which may end before the next step. */
  press() {
    for (const choice of this.choices) if (this.holds(choice.keys)) this.row[choice.part.first] = choice.index;
  }

  holds(keys) {
    const { held } = this.situation();
    return keys.length > 0 && keys.every((alternatives) => alternatives.some((code) => held.has(code)));
  }

  /** Return the action without the pointer's movement, which is not taken. */
  look() {
    this.pad = gamepad();
    const row = [...this.row];
    const touched = new Set(this.touched.values());
    for (const key of this.keys) row[key.column] = Number(this.holds(key.keys) || touched.has(key.column) || this.padHolds(key));
    this.levers?.read().forEach((value, index) => (row[this.axes[index].column] = value));
    return row;
  }

  padHolds({ stick, pad }) {
    if (!this.pad) return false;
    return stick ? this.pad.stick[stick[0]] * stick[1] > 0.5 : Boolean(this.pad.pressed[pad]);
  }

  /** Release all buttons, sliders and the pointer. */
  letGo() {
    this.touched.clear();
    this.moved = [0, 0];
    this.levers?.letGo();
  }

  /** Remove the controls before another world is shown. */
  close() {
    this.abort.abort();
    this.levers?.close();
    this.elements.choices.replaceChildren();
    this.elements.screen.classList.remove("pointed");
    if (document.pointerLockElement) document.exitPointerLock();
  }

  /** Show what is held and chosen, at every animation frame. */
  draw() {
    if (this.abort.signal.aborted) return;
    const row = this.look();
    for (const { button, column } of this.keys) button.classList.toggle("on", row[column] === 1);
    for (const { button, part, index } of this.choices) button.classList.toggle("on", row[part.first] === index);
    if (this.pad && (this.keys.some((key) => this.padHolds(key)) || this.pad.second.some((amount) => Math.abs(amount) > 0.5))) this.begin();
    requestAnimationFrame(() => this.draw());
  }
}

function round(value) {
  return Math.round(value * 1e4) / 1e4;
}
