// What both interfaces share: inputs of a network, its classes, and the heading of its pictures.

import { amount, bytes, duration, field, h } from "./dom.js";

// The names of the networks in order, and the words for them.
export function networksOf(page) {
  const names = Object.keys(page.networks);
  return names.map((name) => ({
    name,
    title: names.length > 1 ? name[0].toUpperCase() + name.slice(1) : "Generator",
    ...page.networks[name],
  }));
}

// The examples in a batch: one, where the network takes any number.
export function batchOf(page) {
  const size = page.inputs[0].shape[0];
  return typeof size === "number" ? size : 1;
}

// The inputs of a batch of one: `first` are the latents or the pixels, with their shape without the batch.
// A network of larger batches computes copies of nothing for the rest.
export function makeInputs(page, first, shape, label, truncation) {
  const batch = batchOf(page);
  const inputs = {};
  for (const slot of page.inputs) {
    if (slot.name === "latents" || slot.name === "images") {
      const values = new Float32Array(batch * first.length);
      values.set(first);
      inputs[slot.name] = { dtype: "float32", values, shape: [batch, ...shape] };
    } else if (slot.name === "labels") {
      const oneHot = slot.shape.length === 2;
      const values = oneHot ? new Float32Array(batch * page.classes) : new Int32Array(batch);
      if (oneHot) for (let row = 0; row < batch; row++) values[row * page.classes] = 1;
      if (oneHot) values.fill(0, 0, page.classes);
      values[oneHot ? label : 0] = oneHot ? 1 : label;
      inputs[slot.name] = { dtype: slot.dtype, values, shape: oneHot ? [batch, page.classes] : [batch] };
    } else {
      inputs[slot.name] = { dtype: "float32", values: new Float32Array([truncation]), shape: [] };
    }
  }
  return inputs;
}

// A choice of the class, or null without classes.
export function classField(page, all, onchange) {
  if (!page.classes) return null;
  const options = Array.from({ length: page.classes }, (_, index) => h("option", { value: index }, `Class ${index}`));
  if (all) options.unshift(h("option", { value: "all" }, "All in turn"));
  return field("Class", h("select", { change: (event) => onchange(event.target.value) }, ...options));
}

// The picture of a network with its name, its size and its time.
export function view(network, children) {
  const time = h("output", { class: "time", "aria-label": `time of the ${network.title}` });
  const figure = h("figure", { class: "view" },
    h("figcaption", {}, h("strong", {}, network.title), time,
      h("span", { class: "facts" }, `${bytes(network.bytes)} · ${amount(network.parameters)}parameters`)),
    ...children);
  const times = [];
  document.addEventListener("runtimechange", () => { times.length = 0; });
  const showTime = (ms) => {
    times.push(ms);
    if (times.length > 9) times.shift();
    const sorted = [...times].sort((a, b) => a - b);
    time.textContent = `${duration(sorted[sorted.length >> 1])} per image`;
  };
  return { figure, showTime };
}

// Saves a canvas as a PNG file.
export function download(canvas, name) {
  canvas.toBlob((blob) => {
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}
