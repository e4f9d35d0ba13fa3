// The assignment of keys to actions, a pure function of the actions' names.
//
// A name consists of parts ("LEFT+UP", "UPFIRE"). A known part or a single letter gets its usual key, and the action is
// selected while the keys of all its parts are held. Other names get digits, then free letters.

export const COMMANDS = { KeyP: "pause", Period: "single", KeyZ: "undo", Backspace: "undo", KeyR: "reset", KeyV: "record" };

const PARTS = {
  LEFT: ["ArrowLeft", "KeyA"], RIGHT: ["ArrowRight", "KeyD"], UP: ["ArrowUp", "KeyW"], DOWN: ["ArrowDown", "KeyS"],
  JUMP: ["Space", "ArrowUp", "KeyW"], FIRE: ["Space", "KeyF"], SHOOT: ["Space", "KeyF"], ATTACK: ["Space", "KeyF"],
  FORWARD: ["KeyW", "ArrowUp"], BACK: ["KeyS", "ArrowDown"], SNEAK: ["ShiftLeft"], CROUCH: ["ShiftLeft"], SPRINT: ["KeyC"],
  INVENTORY: ["KeyE"], DROP: ["KeyQ"],
};
const UPWARD = ["UP", "FORWARD"], SHOTS = ["FIRE", "SHOOT", "ATTACK"]; // what a jump leaves its arrow to, and what its space
const SYMBOLS = { LEFT: "←", RIGHT: "→", UP: "↑", DOWN: "↓" };
const NAMES = { Space: "space", ShiftLeft: "shift", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const FALLBACK = [..."1234567890"].map((digit) => `Digit${digit}`).concat([..."QWERTYUIOPASDFGHJKLZXCVBNM"].map((letter) => `Key${letter}`));

/** Split a name into its parts, in capitals; null where a part is unknown. */
export function partsOf(name) {
  const words = name.toUpperCase().split(/[\s+_&,/-]+/).filter(Boolean);
  const parts = words.flatMap((word) => {
    if (/^[A-Z]$/.test(word) && !(`Key${word}` in COMMANDS)) return [word];
    const found = word.match(new RegExp(Object.keys(PARTS).join("|"), "g")) ?? [];
    return found.join("") === word ? found : [null];
  });
  return parts.length && !parts.includes(null) ? parts : null;
}

/** Make one entry per action: {index, name, keys: [a list of alternatives for each part], label, symbol, place in the 3 x 3 pad}. */
export function bind(names, idle) {
  const known = new Set(); // of two actions with the same name, the second gets a digit
  const parted = names.map((name, index) => {
    const parts = index === idle ? null : partsOf(name);
    const sum = parts && [...parts].sort().join(" ");
    return parts && !known.has(sum) && known.add(sum) ? parts : null;
  });
  const letters = new Set(parted.flat().filter((part) => part?.length === 1).map((part) => `Key${part}`));
  const has = (others) => others.some((other) => parted.flat().includes(other));
  const isGivenUp = (key, part) => (part === "JUMP" && PARTS.UP.includes(key) && has(UPWARD)) || (SHOTS.includes(part) && key === "Space" && has(["JUMP"]));
  const isFree = (key, part) => !letters.has(key) && !isGivenUp(key, part);
  const keysOf = (part) => (part.length === 1 ? [`Key${part}`] : PARTS[part].filter((key) => isFree(key, part)));
  const taken = new Set([...Object.keys(COMMANDS), ...parted.flat().filter(Boolean).flatMap(keysOf)]);
  const free = FALLBACK.filter((key) => !taken.has(key));
  return names.map((name, index) => {
    const parts = parted[index]?.every((part) => keysOf(part).length) ? parted[index] : null;
    const keys = parts ? parts.map(keysOf) : index === idle ? [] : free.length ? [[free.shift()]] : [];
    return { index, name, keys, label: keys.map(([key]) => keyName(key)).join(" "), symbol: symbolOf(parts), place: placeOf(parts, index === idle) };
  });
}

/** Return the action of the held keys: the one with most parts, the latest pressed among equals; else undefined. */
export function chosen(bindings, held) {
  const order = [...held];
  const age = (binding) => Math.max(...binding.keys.map((keys) => Math.max(...keys.map((key) => order.indexOf(key)))));
  return bindings
    .filter(({ keys }) => keys.length && keys.every((alternatives) => alternatives.some((key) => held.has(key))))
    .sort((a, b) => b.keys.length - a.keys.length || age(b) - age(a))[0];
}

export function keyName(key) {
  return NAMES[key] ?? key.replace(/^(Key|Digit)/, "");
}

function symbolOf(parts) {
  if (!parts?.every((part) => part in SYMBOLS)) return null;
  const corner = { "LEFT UP": "↖", "RIGHT UP": "↗", "DOWN LEFT": "↙", "DOWN RIGHT": "↘" }[[...parts].sort().join(" ")];
  return corner ?? (parts.length === 1 ? SYMBOLS[parts[0]] : null);
}

/** Return [column, row] from 1 to 3 of a direction in the pad; null for other actions. */
function placeOf(parts, idle) {
  if (idle) return [2, 2];
  if (!symbolOf(parts)) return null;
  const along = (less, more) => 2 - parts.includes(less) + parts.includes(more);
  return [along("LEFT", "RIGHT"), along("UP", "DOWN")];
}
