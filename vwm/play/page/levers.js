// What sliders, stick, keys and a gamepad make of each dimension of a continuous action: numbers only, no page.
//
// A lever that nobody moves stands where it was left, and while the world runs it springs back to its rest. Whatever
// is like a stick gives a pair [right, up] from -1 to 1, which moves the first two levers away from their rest; where
// a later lever is called brake, down is that one's.

const PRESS = 4, RELEASE = 8, SPRING = 10; // a second: of a key going down, of a key let go, of a lever let go

export class Levers {
  constructor(names, rest) {
    this.rest = rest;
    this.stand = [...rest];
    this.values = [...rest];
    this.grabbed = new Set(); // sliders under somebody's hand
    this.pad = null; // [right, up] while the stick is held
    this.keys = [0, 0]; // the stick that the keys are, on its way
    const brake = names.findIndex((name) => /\bbrakes?\b/i.test(name));
    this.brake = brake > 1 ? brake : undefined;
    this.onStick = [0, 1, this.brake].filter((lever) => lever < rest.length);
  }

  /** Go on to a time in ms: where the keys point, what a gamepad says, and whether levers spring back. */
  advance(now, { keys, gamepad, playing, stay }) {
    const seconds = (now - (this.then ?? now)) / 1000;
    this.then = now;
    // in a pause a press is one step with the whole of it
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

  /** How far a stick pulls each of its levers: [lever, amount] from -1 to 1. */
  pulls([right, up]) {
    const vertical = this.brake === undefined ? [[1, up]] : [[1, Math.max(up, 0)], [this.brake, Math.max(-up, 0)]];
    return [[0, right], ...vertical].filter(([lever]) => lever < this.rest.length);
  }

  /** A gamepad's second stick moves the third and fourth lever, where they are no brake. */
  further(gamepad) {
    const pairs = (gamepad?.second ?? []).map((amount, side) => [2 + side, amount]);
    return pairs.filter(([lever]) => lever < this.rest.length && lever !== this.brake);
  }

  /** Put a lever somewhere by its slider. */
  put(lever, value) {
    this.stand[lever] = value;
  }

  /** The hand leaves the stick: its levers stand where it left them. */
  letGo() {
    if (!this.pad) return;
    for (const lever of this.onStick) this.stand[lever] = this.values[lever];
    this.pad = null;
  }

  /** Where the stick is drawn: [right, up]. */
  get knob() {
    const at = (lever) => (lever < this.rest.length ? inverse(this.rest[lever], this.values[lever]) : 0);
    return [at(0), at(1) - at(this.brake)];
  }
}

/** From rest (0) to the highest value (1) or the lowest (-1). */
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
