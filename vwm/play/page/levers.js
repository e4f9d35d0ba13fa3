// The values of the dimensions of a continuous action (levers) from sliders, stick, keys and gamepad, without the page.
//
// A released lever stays where it is, and while the world runs it springs back to its rest value. Stick, arrow keys and
// gamepad give a pair [right, up] from -1 to 1, which moves the first two levers away from their rest values; where a
// later lever is named brake, down moves that one.

const PRESS = 4, RELEASE = 8, SPRING = 10; // speeds per second: of a pressed key, a released key, a released lever

export class Levers {
  constructor(names, rest) {
    this.rest = rest;
    this.stand = [...rest];
    this.values = [...rest];
    this.grabbed = new Set(); // levers whose sliders are held
    this.pad = null; // [right, up] while the stick is held
    this.keys = [0, 0]; // [right, up] of the keys, which moves gradually
    const brake = names.findIndex((name) => /\bbrakes?\b/i.test(name));
    this.brake = brake > 1 ? brake : undefined;
    this.onStick = [0, 1, this.brake].filter((lever) => lever < rest.length);
  }

  /** Advance to a time in ms, with the direction of the keys, the gamepad, and whether levers spring back. */
  advance(now, { keys, gamepad, playing, stay }) {
    const seconds = (now - (this.then ?? now)) / 1000;
    this.then = now;
    // in a pause, a press is one step with the full value
    this.keys = this.keys.map((value, side) => (playing ? toward(value, keys[side], pace(value, keys[side]) * seconds) : keys[side]));
    if (playing && !stay) {
      this.stand = this.stand.map((value, lever) => (this.grabbed.has(lever) ? value : toward(value, this.rest[lever], SPRING * seconds)));
    }
    const stick = this.pad ?? (gamepad?.stick.some(Boolean) ? gamepad.stick : this.keys);
    this.values = [...this.stand];
    for (const [lever, amount] of [...this.pulls(stick), ...this.further(gamepad)]) {
      if (!this.grabbed.has(lever) && (amount || this.pad)) this.values[lever] = deflect(this.rest[lever], amount);
    }
    return this.values;
  }

  /** Return how far a stick moves each of its levers: [lever, amount] from -1 to 1. */
  pulls([right, up]) {
    const vertical = this.brake === undefined ? [[1, up]] : [[1, Math.max(up, 0)], [this.brake, Math.max(-up, 0)]];
    return [[0, right], ...vertical].filter(([lever]) => lever < this.rest.length);
  }

  /** The second stick of a gamepad moves the third and fourth lever, except a brake. */
  further(gamepad) {
    const pairs = (gamepad?.second ?? []).map((amount, side) => [2 + side, amount]);
    return pairs.filter(([lever]) => lever < this.rest.length && lever !== this.brake);
  }

  /** Set a lever by its slider. */
  put(lever, value) {
    this.stand[lever] = value;
  }

  /** Release the stick: its levers keep their values. */
  letGo() {
    if (!this.pad) return;
    for (const lever of this.onStick) this.stand[lever] = this.values[lever];
    this.pad = null;
  }

  /** The position of the drawn stick: [right, up]. */
  get knob() {
    const at = (lever) => (lever < this.rest.length ? inverse(this.rest[lever], this.values[lever]) : 0);
    return [at(0), at(1) - at(this.brake)];
  }
}

/** Map an amount to a value between rest (0) and the highest (1) or the lowest value (-1). */
function deflect(rest, amount) {
  return rest + amount * (amount > 0 ? 1 - rest : 1 + rest);
}

function inverse(rest, value) {
  return (value - rest) / ((value > rest ? 1 - rest : 1 + rest) || 1);
}

function toward(value, goal, most) {
  return value + Math.max(-most, Math.min(most, goal - value));
}

function pace(value, goal) {
  return value * goal < 0 || Math.abs(goal) < Math.abs(value) ? RELEASE : PRESS;
}
