// The interface of generators of images from latents.

import { draw, field, h } from "./dom.js";
import { batchOf, classField, download, makeInputs, networksOf, view } from "./networks.js";
import { interpolate, normals } from "./numbers.js";

const COUNT = 12;
const LARGEST_SEED = 2 ** 31 - 1 - COUNT;
const LEG = 4000; // milliseconds from one sample to the other

// Resolves when the first sample is shown.
export async function showLatents(page, run, place) {
  const networks = networksOf(page);
  const length = page.inputs[0].shape[1];
  const hasTruncation = page.inputs.some(({ name }) => name === "truncation");
  const state = {
    seed: 10, selected: 0, to: 11, t: 0, offsets: page.directions.map(() => 0), class: "all", truncation: 0.7,
  };

  const labelOf = (seed) => (state.class === "all" ? seed % (page.classes || 1) : Number(state.class));
  const from = () => state.seed + state.selected;

  function latents() {
    const z = interpolate(normals(from(), length), normals(state.to, length), state.t);
    page.directions.forEach((direction, index) => {
      const offset = state.offsets[index];
      if (offset) direction.forEach((value, position) => { z[position] += offset * value; });
    });
    return z;
  }

  // ---------------------------------------------------------------- pictures

  const alert = h("p", { class: "problem", role: "alert", hidden: true });
  const failed = (error) => {
    alert.textContent = `The picture cannot be computed: ${error.message}.`;
    alert.hidden = false;
  };

  async function generate(z, label, onimage) {
    const inputs = makeInputs(page, z, [length], label, state.truncation);
    for (const network of networks) {
      const { values, shape, ms } = await run(network.name, inputs);
      onimage(network, values, shape.slice(1), ms / batchOf(page));
    }
  }

  const views = new Map(networks.map((network) => {
    const canvas = h("canvas", { role: "img" });
    return [network.name, { canvas, ...view(network, [canvas]) }];
  }));

  let wanted = false, busy = null;
  function refresh() {
    wanted = true;
    busy ??= (async () => {
      while (wanted) {
        wanted = false;
        await generate(latents(), labelOf(from()), (network, values, shape, ms) => {
          const { canvas, showTime } = views.get(network.name);
          draw(canvas, values, shape);
          canvas.setAttribute("aria-label", `image of the ${network.title}, seed ${from()}`);
          showTime(ms);
        }).catch(failed);
      }
      busy = null;
    })();
    return busy;
  }

  const tiles = Array.from({ length: COUNT }, (_, index) => {
    const canvases = networks.map(() => h("canvas", { width: page.outputs[0].shape[2], height: page.outputs[0].shape[1] }));
    const button = h("button", { type: "button", role: "radio", class: "tile", click: () => select(index), keydown: (event) => move(event, index) }, ...canvases);
    return { button, canvases };
  });

  let generation = 0;
  async function fill() {
    const mine = ++generation;
    for (const [index, { button, canvases }] of tiles.entries()) {
      const seed = state.seed + index;
      button.setAttribute("aria-label", `seed ${seed}${page.classes ? `, class ${labelOf(seed)}` : ""}`);
      button.title = button.getAttribute("aria-label");
    }
    grid.setAttribute("aria-busy", "true");
    for (const [index, { canvases }] of tiles.entries()) {
      const seed = state.seed + index;
      await generate(normals(seed, length), labelOf(seed), (network, values, shape) => {
        if (mine === generation) draw(canvases[networks.indexOf(network)], values, shape);
      });
      if (mine !== generation) return;
    }
    grid.setAttribute("aria-busy", "false");
  }

  function select(index) {
    state.selected = index;
    state.t = 0;
    state.to = state.seed + ((index + 1) % COUNT);
    stop();
    showState();
    refresh();
  }

  function move(event, index) {
    const top = tiles[0].button.offsetTop;
    const columns = tiles.filter(({ button }) => button.offsetTop === top).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = { Home: 0, End: COUNT - 1 }[event.key] ?? index + step;
    if (!(next >= 0 && next < COUNT)) return;
    event.preventDefault();
    select(next);
    tiles[next].button.focus();
  }

  function reseed(seed) {
    state.seed = Math.min(LARGEST_SEED, Math.max(0, Math.trunc(seed) || 0));
    select(state.selected);
    fill().catch(failed);
  }

  // ---------------------------------------------------------------- controls

  const seedInput = h("input", { type: "number", min: 0, max: LARGEST_SEED, change: () => reseed(Number(seedInput.value)) });
  const fresh = h("button", { type: "button", class: "primary", click: () => reseed(Math.random() * 1e6) }, "New seeds");
  const choice = classField(page, true, (value) => {
    state.class = value;
    refresh();
    fill().catch(failed);
  });

  function slider(text, minimum, maximum, step, value, onchange) {
    const shown = h("output", {});
    const input = h("input", { type: "range", min: minimum, max: maximum, step, input: () => set(Number(input.value), true) });
    const set = (number, act = false) => {
      input.value = number;
      shown.textContent = number.toFixed(step < 0.1 ? 2 : 1);
      if (act) onchange(number);
    };
    set(value);
    const row = field(text, input, "slider");
    row.append(shown);
    return { row, set, input };
  }

  const sliders = page.directions.map((_, index) => slider(`Direction ${index + 1}`, -6, 6, 0.1, 0, (value) => {
    state.offsets[index] = value;
    refresh();
  }));
  const reset = h("button", { type: "button", click: () => {
    state.offsets.fill(0);
    sliders.forEach(({ set }) => set(0));
    refresh();
  } }, "Reset");
  const truncation = slider("Truncation", 0, 1, 0.05, state.truncation, (value) => {
    state.truncation = value;
    refresh();
    fill().catch(failed);
  });

  const toInput = h("input", { type: "number", min: 0, max: LARGEST_SEED, change: () => {
    state.to = Math.min(LARGEST_SEED, Math.max(0, Math.trunc(Number(toInput.value)) || 0));
    toInput.value = state.to;
    refresh();
  } });
  const morph = slider("Position", 0, 1, 0.01, 0, (value) => {
    state.t = value;
    refresh();
  });
  const playButton = h("button", { type: "button", "aria-pressed": "false", click: () => (playing ? stop() : play()) }, "Play");

  let playing = null;
  function stop() {
    playing = null;
    playButton.textContent = "Play";
    playButton.setAttribute("aria-pressed", "false");
  }
  async function play() {
    const mine = (playing = {});
    playButton.textContent = "Pause";
    playButton.setAttribute("aria-pressed", "true");
    const start = performance.now() - state.t * LEG;
    while (playing === mine) {
      const phase = ((performance.now() - start) / LEG) % 2;
      state.t = phase < 1 ? phase : 2 - phase;
      morph.set(state.t);
      await refresh();
      await new Promise(requestAnimationFrame);
    }
  }

  function showState() {
    seedInput.value = state.seed;
    toInput.value = state.to;
    morph.set(state.t);
    fromText.textContent = `From seed ${from()}`;
    tiles.forEach(({ button }, index) => {
      button.setAttribute("aria-checked", String(index === state.selected));
      button.tabIndex = index === state.selected ? 0 : -1;
    });
  }

  const fromText = h("span", { class: "small" });
  const grid = h("div", { class: `grid${networks.length > 1 ? " pairs" : ""}`, role: "radiogroup", "aria-label": "Samples" }, ...tiles.map(({ button }) => button));
  const save = h("button", { type: "button", click: () => {
    const student = networks[networks.length - 1];
    download(views.get(student.name).canvas, `seed-${from()}.png`);
  } }, "Download PNG");

  const directions = sliders.length
    ? [h("section", { class: "card" }, h("div", { class: "bar" }, h("h2", {}, "Directions"), reset), ...sliders.map(({ row }) => row))]
    : [];
  place.append(h("div", { class: `workspace${networks.length > 1 ? " several" : ""}` },
    h("section", { class: "stage", "aria-label": "The selected sample" },
      h("div", { class: "views" }, ...[...views.values()].map(({ figure }) => figure)), alert,
      h("div", { class: "actions" }, save)),
    h("section", { class: "samples", "aria-label": "Samples by seed" },
      h("div", { class: "toolbar" }, field("First seed", seedInput), ...(choice ? [choice] : []), fresh),
      grid,
      h("p", { class: "hint" }, networks.length > 1 ? `In each pair: ${networks.map(({ title }) => title.toLowerCase()).join(", ")}. ` : "", "Select a sample with the pointer or the arrow keys.")),
    h("div", { class: "controls" },
      ...(hasTruncation ? [h("section", { class: "card" }, h("h2", {}, "Truncation"), truncation.row)] : []),
      ...directions,
      h("section", { class: "card" },
        h("div", { class: "bar" }, h("h2", {}, "Between two samples"), playButton),
        h("div", { class: "bar" }, fromText, field("to seed", toInput, "field inline")),
        morph.row))));

  document.addEventListener("runtimechange", refresh);
  showState();
  await refresh();
  fill().catch(failed);
}
