// onnxruntime-web: whether WebGPU or WebAssembly computes the graphs of a world.

const MODULES = { webgpu: "ort.webgpu.min.mjs", wasm: "ort.wasm.min.mjs" };
const MOST_THREADS = 4;

/**
 * Choose what computes: {provider, why}, where the reason is a sentence for the page.
 *
 * wish: "auto" takes WebGPU where the browser has a graphics card for it; "webgpu" also takes an adapter that computes
 * on the processor, which is slower than WebAssembly; "wasm" takes WebAssembly.
 */
export async function chooseProvider(wish) {
  if (!["auto", "webgpu", "wasm"].includes(wish)) throw new Error(`backend=${wish}: give auto, webgpu or wasm`);
  if (wish === "wasm") return { provider: "wasm", why: "as the address asks" };
  if (!navigator.gpu) {
    return { provider: "wasm", why: self.isSecureContext ? "this browser has no WebGPU" : "browsers have WebGPU on pages with https only" };
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return { provider: "wasm", why: "the browser's WebGPU has no adapter here" };
  const { vendor, architecture, isFallbackAdapter } = adapter.info;
  const name = [vendor, architecture].filter(Boolean).join(" ") || "an adapter without a name";
  if ((isFallbackAdapter ?? adapter.isFallbackAdapter) && wish === "auto") {
    return { provider: "wasm", why: `WebGPU has only ${name} here, which computes on the processor, too` };
  }
  return { provider: "webgpu", why: name };
}

/** Import onnxruntime-web of a provider from a folder's address; `ort.vwmThreads` is its number of threads. */
export async function importRuntime(folder, provider) {
  const ort = await import(`${folder}/${MODULES[provider]}`);
  const threads = self.crossOriginIsolated && provider === "wasm" ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  ort.env.wasm.wasmPaths = `${folder}/`;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return { ort, threads };
}

/** What the page says of a provider. */
export function describeProvider({ provider, why }, threads) {
  return provider === "webgpu" ? `computed by WebGPU: ${why}` : `computed by WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}: ${why}`;
}
