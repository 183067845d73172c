// Elements, numbers in words, and pictures.

// An element: attributes, handlers (functions), properties that start with a dot, and children.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name.startsWith(".")) element[name.slice(1)] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

let labels = 0;

// A control with its label.
export function field(text, control, className = "field") {
  control.id ||= `control${labels++}`;
  return h("div", { class: className }, h("label", { for: control.id }, text), control);
}

export function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(count < 1e7 ? 2 : 1)} MB`;
}

// A number with its prefix, to be followed by the unit.
export function amount(count) {
  for (const [unit, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= unit) return `${(count / unit).toPrecision(3)} ${prefix} `;
  }
  return `${Math.round(count)} `;
}

export function duration(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 1e4 ? 2 : 1)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

// Draws a picture of [height, width, channels] numbers in [-1, 1], which begins at `start`.
export function draw(canvas, values, [height, width, channels], start = 0) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(toPixels(values, [height, width, channels], start), 0, 0);
}

export function toPixels(values, [height, width, channels], start = 0) {
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = values[start + pixel * channels + Math.min(channel, channels - 1)];
      image.data[4 * pixel + channel] = Math.round((value + 1) * 127.5);
    }
    image.data[4 * pixel + 3] = 255;
  }
  return image;
}
