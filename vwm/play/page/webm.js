// Videos as WebM (Matroska's elements, RFC 9559): the browser encodes the frames, and this file writes the container.

const CODECS = [["vp09.00.10.08", "V_VP9"], ["vp8", "V_VP8"]];
const KEYFRAMES = 60; // frames from one to the next
const BITS_PER_PIXEL = 2; // enough that small frames keep their colored edges

/** Encode frames (ImageData of one size). Raises an error where the browser encodes no video. */
export async function encodeWebm(frames, fps) {
  const [{ width, height }] = frames;
  const [codec, name] = await findCodec(width, height, fps);
  const chunks = [];
  let failure;
  const encoder = new VideoEncoder({
    output: (chunk) => chunks.push(chunk),
    error: (error) => (failure = error),
  });
  encoder.configure(settings(codec, width, height, fps));
  for (const [number, frame] of frames.entries()) {
    const video = new VideoFrame(frame.data, { format: "RGBA", codedWidth: width, codedHeight: height, timestamp: Math.round((1e6 * number) / fps) });
    encoder.encode(video, { keyFrame: number % KEYFRAMES === 0 });
    video.close();
  }
  await encoder.flush();
  encoder.close();
  if (failure) throw failure;
  return container(chunks, name, width, height, fps);
}

async function findCodec(width, height, fps) {
  for (const [codec, name] of typeof VideoEncoder === "undefined" ? [] : CODECS) {
    const { supported } = await VideoEncoder.isConfigSupported(settings(codec, width, height, fps));
    if (supported) return [codec, name];
  }
  throw new Error("this browser encodes no video that can be written here: download the GIF");
}

function settings(codec, width, height, framerate) {
  return { codec, width, height, framerate, bitrate: Math.max(500_000, Math.round(BITS_PER_PIXEL * width * height * framerate)) };
}

function container(chunks, codec, width, height, fps) {
  const head = element(0x1a45dfa3, number(0x4286, 1), number(0x42f7, 1), number(0x42f2, 4), number(0x42f3, 8), text(0x4282, "webm"), number(0x4287, 2), number(0x4285, 2));
  const info = element(0x1549a966, number(0x2ad7b1, 1_000_000), float(0x4489, (1000 * chunks.length) / fps), text(0x4d80, "vwm"), text(0x5741, "vwm"));
  const size = element(0xe0, number(0xb0, width), number(0xba, height));
  const track = element(0xae, number(0xd7, 1), number(0x73c5, 1), number(0x83, 1), number(0x23e383, Math.round(1e9 / fps)), text(0x86, codec), size);
  const clusters = [];
  for (const chunk of chunks) {
    const time = Math.round(chunk.timestamp / 1000); // in milliseconds
    if (chunk.type === "key") clusters.push({ start: time, blocks: [] });
    const { start, blocks } = clusters.at(-1);
    const data = new Uint8Array(chunk.byteLength);
    chunk.copyTo(data);
    blocks.push(element(0xa3, Uint8Array.of(0x81, (time - start) >> 8, (time - start) & 255, chunk.type === "key" ? 0x80 : 0), data));
  }
  const body = clusters.map(({ start, blocks }) => element(0x1f43b675, number(0xe7, start), ...blocks));
  return new Blob([head, element(0x18538067, info, element(0x1654ae6b, track), ...body)], { type: "video/webm" });
}

/** An element: its identifier, the length of its content in eight bytes, and the content. */
function element(identifier, ...parts) {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const begin = [...bytesOf(identifier), 1, ...bytesOf(length, 7)];
  const bytes = new Uint8Array(begin.length + length);
  bytes.set(begin);
  let offset = begin.length;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

function number(identifier, value) {
  return element(identifier, Uint8Array.from(bytesOf(value)));
}

function float(identifier, value) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setFloat64(0, value);
  return element(identifier, bytes);
}

function text(identifier, value) {
  return element(identifier, new TextEncoder().encode(value));
}

/** The big-endian bytes of an integer, as few as it needs or `count`. */
function bytesOf(value, count = Math.max(1, Math.ceil(Math.log2(value + 1) / 8))) {
  return Array.from({ length: count }, (_, index) => Math.floor(value / 256 ** (count - 1 - index)) % 256);
}
