// Animated GIFs (GIF89a): each frame has its own 256 colors, exact where it has no more.

const CLEAR = 256;
const END = 257;

/** Encode frames (ImageData of one size), shown in a loop. */
export function encodeGif(frames, fps) {
  const [{ width, height }] = frames;
  const size = [...word(width), ...word(height)];
  const loop = [0x21, 0xff, 11, ...text("NETSCAPE2.0"), 3, 1, 0, 0, 0];
  const parts = [[...text("GIF89a"), ...size, 0x70, 0, 0, ...loop]];
  for (const frame of frames) {
    const { palette, indices } = quantize(frame.data);
    const control = [0x21, 0xf9, 4, 0, ...word(Math.round(100 / fps)), 0, 0];
    parts.push(Uint8Array.from([...control, 0x2c, 0, 0, 0, 0, ...size, 0x87]), palette, Uint8Array.of(8), blocks(compress(indices)));
  }
  parts.push([0x3b]);
  return new Blob(parts.map((part) => Uint8Array.from(part)), { type: "image/gif" });
}

/** Reduce pixels RGBA to at most 256 colors: those that agree in their upper bits become their mean. */
function quantize(pixels) {
  const count = pixels.length / 4;
  for (let dropped = 0; ; dropped++) {
    const numbers = new Map(); // of a color's upper bits
    const indices = new Uint8Array(count);
    const sums = [];
    for (let pixel = 0; pixel < count && numbers.size <= 256; pixel++) {
      const [red, green, blue] = pixels.subarray(4 * pixel, 4 * pixel + 3);
      const key = ((red >> dropped) << 16) | ((green >> dropped) << 8) | (blue >> dropped);
      let number = numbers.get(key);
      if (number === undefined) numbers.set(key, (number = sums.push([0, 0, 0, 0]) - 1));
      const sum = sums[number];
      sum[0] += red;
      sum[1] += green;
      sum[2] += blue;
      sum[3] += 1;
      indices[pixel] = number;
    }
    if (numbers.size > 256) continue;
    const palette = new Uint8Array(768);
    sums.forEach(([red, green, blue, members], number) => palette.set([red, green, blue].map((sum) => Math.round(sum / members)), 3 * number));
    return { palette, indices };
  }
}

/** Compress indices of 8 bits by LZW with codes of 9 to 12 bits. */
function compress(indices) {
  const bytes = [];
  let [waiting, bits, width] = [0, 0, 9];
  const write = (code) => {
    waiting |= code << bits;
    for (bits += width; bits >= 8; bits -= 8, waiting >>>= 8) bytes.push(waiting & 255);
  };
  let codes = new Map(); // of a prefix and the next index
  write(CLEAR);
  let prefix = indices[0];
  for (const index of indices.subarray(1)) {
    const key = (prefix << 8) | index;
    const code = codes.get(key);
    if (code !== undefined) {
      prefix = code;
      continue;
    }
    write(prefix);
    prefix = index;
    const next = END + 1 + codes.size;
    if (next === 4096) {
      write(CLEAR);
      [codes, width] = [new Map(), 9];
    } else {
      codes.set(key, next);
      if (next === 1 << width && width < 12) width++;
    }
  }
  write(prefix);
  write(END);
  if (bits) bytes.push(waiting & 255);
  return bytes;
}

/** Divide bytes into blocks of at most 255, each after its length, and an empty one. */
function blocks(bytes) {
  const parts = [];
  for (let start = 0; start < bytes.length; start += 255) {
    const block = bytes.slice(start, start + 255);
    parts.push(block.length, ...block);
  }
  return Uint8Array.from([...parts, 0]);
}

function word(value) {
  return [value & 255, value >> 8];
}

function text(letters) {
  return [...letters].map((letter) => letter.charCodeAt(0));
}
