// The interface of generators of images from images.

import { bytes, duration, field, h, toPixels } from "./dom.js";
import { classField, download, makeInputs, networksOf, view } from "./networks.js";
import { drawExample } from "./example.js";

const WHOLE = 192 * 192; // pixels of a picture that is computed in one piece, where there are tiles
const TILE = 160, MARGIN = 8; // pixels
const MOST_OUTPUT = 1 << 24; // pixels, which all browsers hold in a canvas
const MOST_INPUT = 1 << 20; // pixels of a network that sees the whole picture

// Resolves when the example is shown.
export async function showImages(page, run, place) {
  const networks = networksOf(page);
  const { height, width, fixed, least, scale } = page.images;
  const channels = page.inputs[0].shape[3];
  const tiled = !fixed && scale > 1;
  const state = { class: 0, left: null, name: "example", job: 0, source: null };

  // ---------------------------------------------------------------- pictures

  // The part of a picture that the network takes, and what was done to it in words.
  function prepare(source) {
    const [w, h0] = [source.width, source.height];
    let [targetWidth, targetHeight] = [width, height];
    const notes = [];
    if (!fixed) {
      let ratio = Math.max(1, least / Math.min(w, h0));
      if (tiled && w * h0 * scale * scale > MOST_OUTPUT) {
        const most = Math.floor(MOST_OUTPUT / scale / scale / 1e3) * 1e3;
        throw new Error(`The picture has ${w} × ${h0} pixels; this page enlarges pictures of up to ${most.toLocaleString("en")} pixels, such as ${Math.floor(Math.sqrt(most))} × ${Math.floor(Math.sqrt(most))}. Choose a smaller one.`);
      }
      if (!tiled && w * h0 > MOST_INPUT) ratio = Math.sqrt(MOST_INPUT / w / h0);
      targetWidth = Math.max(width, Math.floor((w * ratio) / width) * width);
      targetHeight = Math.max(height, Math.floor((h0 * ratio) / height) * height);
      if (ratio !== 1) notes.push(`resized from ${w} × ${h0}${ratio < 1 ? `, since the limit of this page is ${MOST_INPUT.toLocaleString("en")} pixels` : ""}`);
      else if (targetWidth !== w || targetHeight !== h0) notes.push(`cut from ${w} × ${h0}, since the network takes multiples of ${width} × ${height}`);
      const canvas = h("canvas", { width: targetWidth, height: targetHeight });
      paint(canvas, source, ratio);
      return { canvas, notes };
    }
    const ratio = Math.max(targetWidth / w, targetHeight / h0);
    const canvas = h("canvas", { width: targetWidth, height: targetHeight });
    paint(canvas, source, ratio);
    const cut = Math.abs(targetWidth / w - targetHeight / h0) > 1e-9;
    if (cut || ratio !== 1) notes.push(`${cut ? "cut and " : ""}resized from ${w} × ${h0}, since the network takes ${width} × ${height}`);
    return { canvas, notes };
  }

  // The middle of a picture, on white.
  function paint(canvas, source, ratio) {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    const [w, h0] = [source.width * ratio, source.height * ratio];
    const [x, y] = [(canvas.width - w) / 2, (canvas.height - h0) / 2];
    context.drawImage(source, ratio === 1 ? Math.round(x) : x, ratio === 1 ? Math.round(y) : y, w, h0);
  }

  function toValues(image) {
    const { data } = image;
    const values = new Float32Array((data.length / 4) * channels);
    for (let pixel = 0; pixel < data.length / 4; pixel++) {
      const [r, g, b] = data.subarray(4 * pixel, 4 * pixel + 3);
      const colours = channels === 3 ? [r, g, b] : [0.299 * r + 0.587 * g + 0.114 * b];
      colours.forEach((value, channel) => { values[pixel * channels + channel] = value / 127.5 - 1; });
    }
    return values;
  }

  // The pieces of a side, of about the same length: [start, end, start and end that are read].
  function pieces(side, step) {
    const margin = Math.ceil(MARGIN / step) * step;
    const count = Math.ceil(side / Math.max(TILE, 2 * least));
    const edges = Array.from({ length: count + 1 }, (_, index) => Math.round((index * side) / count / step) * step);
    return edges.slice(1).map((end, index) =>
      [edges[index], end, Math.max(0, edges[index] - margin), Math.min(side, end + margin)]);
  }

  async function compute(network, input, output, cancelled, progress) {
    const context = input.getContext("2d", { willReadFrequently: true });
    const whole = !tiled || input.width * input.height <= WHOLE;
    const rows = whole ? [[0, input.height, 0, input.height]] : pieces(input.height, height);
    const columns = whole ? [[0, input.width, 0, input.width]] : pieces(input.width, width);
    output.width = Math.round(input.width * scale);
    output.height = Math.round(input.height * scale);
    let total = 0, done = 0;
    for (const [top, bottom, y0, y1] of rows) {
      for (const [left, right, x0, x1] of columns) {
        const values = toValues(context.getImageData(x0, y0, x1 - x0, y1 - y0));
        const inputs = makeInputs(page, values, [y1 - y0, x1 - x0, channels], state.class, 1);
        const result = await run(network.name, inputs);
        if (cancelled()) return null;
        total += result.ms;
        const pixels = toPixels(result.values, result.shape.slice(1));
        output.getContext("2d").putImageData(pixels, x0 * scale, y0 * scale,
          (left - x0) * scale, (top - y0) * scale, (right - left) * scale, (bottom - top) * scale);
        progress(++done, rows.length * columns.length);
      }
    }
    return { ms: total, tiles: rows.length * columns.length };
  }

  // ---------------------------------------------------------------- the stage

  const inputCanvas = h("canvas", { role: "img", "aria-label": "input" });
  const smoothCanvas = h("canvas", { role: "img", "aria-label": "bicubic enlargement" });
  const views = new Map(networks.map((network) => {
    const canvas = h("canvas", { role: "img", "aria-label": `output of the ${network.title}` });
    return [network.name, { canvas, ...view(network, [canvas]) }];
  }));
  const student = networks[networks.length - 1];
  const sides = {
    Input: inputCanvas,
    ...(scale !== 1 ? { Bicubic: smoothCanvas } : {}),
    ...(networks.length > 1 ? { Teacher: views.get("teacher").canvas } : {}),
  };
  state.left = scale !== 1 ? "Bicubic" : "Input";

  const before = h("canvas", { class: "before" });
  const after = h("canvas", { class: "after" });
  const range = h("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": "Boundary between both images, in percent", input: () => split() });
  const handle = h("div", { class: "handle" });
  const [leftTag, rightTag] = [h("span", { class: "tag left" }), h("span", { class: "tag right" }, student.title)];
  const stage = h("div", { class: "compare" }, before, after, range, handle, leftTag, rightTag);

  function split() {
    after.style.clipPath = `inset(0 0 0 ${range.value}%)`;
    handle.style.left = `${range.value}%`;
  }

  function showStage() {
    const right = views.get(student.name).canvas;
    for (const [target, source] of [[before, sides[state.left]], [after, right]]) {
      target.width = right.width;
      target.height = right.height;
      const context = target.getContext("2d");
      context.imageSmoothingEnabled = state.left !== "Input";
      if (source.width && source.height) context.drawImage(source, 0, 0, target.width, target.height);
    }
    leftTag.textContent = state.left;
    stage.style.aspectRatio = `${right.width} / ${right.height}`;
    // A small picture is enlarged, but not to a screen of few pixels.
    stage.style.maxWidth = `min(100%, ${Math.max(480, 2 * right.width)}px, calc(66vh * ${right.width / right.height}))`;
  }

  // ---------------------------------------------------------------- actions

  const note = h("p", { class: "note", role: "status" });
  const alert = h("p", { class: "problem", role: "alert", hidden: true });
  const cancel = h("button", { type: "button", hidden: true, click: () => {
    state.job++;
    cancel.hidden = true;
    note.textContent = "Stopped.";
  } }, "Stop");
  const failed = (error) => {
    alert.textContent = error.message;
    alert.hidden = false;
    note.textContent = "";
  };

  async function process(source, name) {
    const job = ++state.job;
    const cancelled = () => job !== state.job;
    alert.hidden = true;
    let prepared;
    try {
      prepared = prepare(source);
    } catch (error) {
      return failed(error);
    }
    Object.assign(state, { source, name });
    const { canvas, notes } = prepared;
    copy(canvas, inputCanvas, canvas.width, canvas.height);
    copy(canvas, smoothCanvas, Math.round(canvas.width * scale), Math.round(canvas.height * scale));
    copy(smoothCanvas, views.get(student.name).canvas, smoothCanvas.width, smoothCanvas.height);
    inputCaption.textContent = `${canvas.width} × ${canvas.height}`;
    smoothCaption.textContent = `${smoothCanvas.width} × ${smoothCanvas.height}, by the browser`;
    showStage();
    cancel.hidden = false;
    save.disabled = true;
    try {
      let tiles = 1;
      for (const network of networks) {
        const { canvas: output, showTime } = views.get(network.name);
        const result = await compute(network, canvas, output, cancelled, (done, total) => {
          note.textContent = `Computing${networks.length > 1 ? ` (${network.title})` : ""}: ${done} of ${total} tiles`;
        });
        if (!result) return;
        showTime(result.ms);
        tiles = result.tiles;
        showStage();
      }
      if (tiles > 1) notes.push(`computed in ${tiles} tiles`);
      const words = notes.join("; ");
      note.textContent = words ? `The picture was ${words}.` : "";
      save.disabled = false;
    } catch (error) {
      failed(new Error(`The picture cannot be computed: ${error.message}.`));
    }
    cancel.hidden = true;
  }

  function copy(source, target, targetWidth, targetHeight) {
    target.width = targetWidth;
    target.height = targetHeight;
    const context = target.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, targetWidth, targetHeight);
  }

  async function open(file) {
    if (!file) return;
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      return failed(new Error(`${file.name} is not a picture that this browser reads.`));
    }
    await process(picture, file.name.replace(/\.\w+$/, ""));
  }

  const input = h("input", { type: "file", accept: "image/*", class: "hidden", id: "picture", change: () => {
    open(input.files[0]);
    input.value = "";
  } });
  const choose = h("label", { for: "picture", class: "button primary" }, "Choose a picture");
  const example = h("button", { type: "button", click: () => showExample() }, "Example");
  const save = h("button", { type: "button", disabled: true, click: () => download(views.get(student.name).canvas, `${state.name}-output.png`) }, "Download PNG");
  const showExample = () => {
    // A size that takes seconds: at most so many multiply-accumulates.
    const [sizeHeight, sizeWidth] = page.images.size;
    const perPixel = Math.max(...networks.map(({ macs }) => macs)) / sizeHeight / sizeWidth;
    const side = Math.sqrt(Math.min(144 * 96, 4e10 / perPixel) / 6);
    return fixed
      ? process(drawExample(width, height), "example")
      : process(drawExample(Math.max(least, Math.round(3 * side)), Math.max(least, Math.round(2 * side))), "example");
  };
  const choice = classField(page, false, (value) => {
    state.class = Number(value);
    process(state.source, state.name);
  });

  const choices = Object.keys(sides).map((name) => {
    const radio = h("input", { type: "radio", name: "left", value: name, ".checked": name === state.left, change: () => {
      state.left = name;
      showStage();
    } });
    return h("label", {}, radio, h("span", {}, name));
  });
  const [inputCaption, smoothCaption] = [h("span", { class: "facts" }), h("span", { class: "facts" })];
  const strip = [
    h("figure", { class: "view" }, h("figcaption", {}, h("strong", {}, "Input"), inputCaption), inputCanvas),
    ...(scale !== 1 ? [h("figure", { class: "view" }, h("figcaption", {}, h("strong", {}, "Bicubic"), smoothCaption), smoothCanvas)] : []),
    ...[...views.values()].map(({ figure }) => figure),
  ];
  inputCanvas.classList.add("pixels");

  place.append(h("div", { class: "studio" },
    h("div", { class: "toolbar" }, input, choose, example, ...(choice ? [choice] : []),
      ...(choices.length > 1 ? [h("fieldset", { class: "segments" }, h("legend", {}, "Compare with"), ...choices)] : []),
      save, cancel),
    alert,
    stage,
    note,
    h("p", { class: "hint" }, "Drop or paste a picture anywhere. Drag the boundary, or move it with the arrow keys."),
    h("div", { class: "strip" }, ...strip)));

  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", type === "dragover");
      if (type === "drop") open(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => open([...event.clipboardData.files][0]));

  document.addEventListener("runtimechange", () => process(state.source, state.name));

  split();
  await showExample();
}
