// A small plot of the latency of the last steps.

const MODEL = "#5b6475", LATE = "#ef6b5f", TRANSPORT = "#5aa9e8";

/** Return the value below which a share of the values lies. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const [low, high] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
  return low + (high - low) * (place % 1);
}

/**
 * Draw bars of the last latencies {model, transport} in ms, newest at the right: the model below the transport, the
 * model in another color where it takes more than `budget`; the budget as a line.
 */
export function drawSparkline(canvas, latencies, budget, room = 120) {
  const density = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * density;
  canvas.height = height * density;
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  const top = Math.max(budget * 1.25, ...latencies.map(({ model, transport }) => model + transport));
  const tall = (ms) => (ms / top) * (height - 2);
  const bar = width / room;
  latencies.forEach(({ model, transport }, index) => {
    const left = width - (latencies.length - index) * bar;
    const low = Math.max(1.5, tall(model));
    const fill = (color, bottom, size) => {
      pen.fillStyle = color;
      pen.fillRect(left, height - bottom - size, Math.max(1, bar - 0.6), size);
    };
    fill(model > budget ? LATE : MODEL, 0, low);
    fill(TRANSPORT, low, tall(transport));
  });
  pen.fillStyle = "#e8b45a66";
  pen.fillRect(0, height - tall(budget), width, 1);
}
