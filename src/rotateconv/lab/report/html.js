"use strict";
// The kernels of every layer, drawn from their frames, between the start and the end of the training.
const layers = JSON.parse(document.getElementById("kernels").textContent);
const COLUMNS = 6, SECONDS = 4;  // 18 kernels of a layer
const slider = document.getElementById("time"), button = document.getElementById("play");
const shown = document.getElementById("shown");
for (const layer of layers) {
  layer.numbers = Int8Array.from(atob(layer.frames), (letter) => letter.charCodeAt(0));
  layer.canvas = document.getElementById(layer.id);
}

// "#rrggbb" of the page's palette as three numbers.
const color = (name) => {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const long = text.length === 4 ? text.replace(/[0-9a-f]/gi, "$&$&") : text;
  return [1, 3, 5].map((place) => parseInt(long.slice(place, place + 2), 16));
};

function draw(layer, time, palette) {
  const ratio = devicePixelRatio, width = layer.canvas.clientWidth, height = layer.canvas.clientHeight;
  if (!width) return;
  if (layer.canvas.width !== Math.round(width * ratio)) {
    layer.canvas.width = Math.round(width * ratio);
    layer.canvas.height = Math.round(height * ratio);
  }
  const pen = layer.canvas.getContext("2d"), { size, turns, numbers } = layer;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const step = width / COLUMNS, side = step * 0.84, one = side / size, area = size * size;
  const frames = numbers.length / (turns.length * area);
  const at = time * (frames - 1), first = Math.min(Math.floor(at), Math.max(0, frames - 2)), part = at - first;
  turns.forEach(([before, after], kernel) => {
    const left = (kernel % COLUMNS) * step, top = Math.floor(kernel / COLUMNS) * step;
    for (let place = 0; place < area; place++) {
      const from = (first * turns.length + kernel) * area + place;
      const until = frames > 1 ? from + turns.length * area : from;
      const value = (numbers[from] * (1 - part) + numbers[until] * part) / 127;
      const strength = Math.sqrt(Math.abs(value)), target = value < 0 ? palette.blue : palette.orange;
      const mixed = palette.raised.map((paper, channel) => Math.round(paper + (target[channel] - paper) * strength));
      pen.fillStyle = `rgb(${mixed})`;
      pen.fillRect(left + (place % size) * one, top + Math.floor(place / size) * one, one - 0.5, one - 0.5);
    }
    const angle = before + (after - before) * time, x = left + side / 2, y = top + side / 2, reach = side * 0.42;
    pen.strokeStyle = pen.fillStyle = `rgb(${palette.ink})`;
    pen.lineWidth = 1.2;
    pen.beginPath();
    pen.moveTo(x - reach * Math.cos(angle), y + reach * Math.sin(angle));
    pen.lineTo(x + reach * Math.cos(angle), y - reach * Math.sin(angle));
    pen.stroke();
    pen.beginPath();
    pen.arc(x + reach * Math.cos(angle), y - reach * Math.sin(angle), 2, 0, 2 * Math.PI);
    pen.fill();
  });
}

function drawAll() {
  const palette = { orange: color("--orange"), blue: color("--blue"), raised: color("--raised"), ink: color("--ink") };
  const time = Number(slider.value) / 100;
  shown.textContent = time === 0 ? "start" : time === 1 ? "end" : `${Math.round(time * 100)} %`;
  for (const layer of layers) draw(layer, time, palette);
}

let since = null;
function tick(now) {
  if (since === null) return;
  const time = Math.min(1, (now - since) / 1000 / SECONDS);
  slider.value = time * 100;
  drawAll();
  if (time < 1) requestAnimationFrame(tick);
  else pause();
}
function pause() {
  since = null;
  button.textContent = "Play";
}
button.addEventListener("click", () => {
  if (since !== null) return pause();
  const from = Number(slider.value) >= 100 ? 0 : Number(slider.value) / 100;
  since = performance.now() - from * SECONDS * 1000;
  button.textContent = "Pause";
  requestAnimationFrame(tick);
});
slider.addEventListener("input", () => { pause(); drawAll(); });
addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", drawAll));
drawAll();
