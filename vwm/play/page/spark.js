// A small plot of the latency of the last steps.

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Draw bars of the last latencies in ms, newest at the right; those over `budget` in another color, the budget as a line. */
export function drawSparkline(canvas, values, budget, room = 120) {
  const density = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * density;
  canvas.height = height * density;
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  const top = Math.max(budget * 1.25, ...values);
  const bar = width / room;
  values.forEach((value, index) => {
    const tall = Math.max(1.5, (value / top) * (height - 2));
    pen.fillStyle = value > budget ? "#ef6b5f" : "#5b6475";
    pen.fillRect(width - (values.length - index) * bar, height - tall, Math.max(1, bar - 0.6), tall);
  });
  pen.fillStyle = "#e8b45a66";
  pen.fillRect(0, height - (budget / top) * (height - 2), width, 1);
}
