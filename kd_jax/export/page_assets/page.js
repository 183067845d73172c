// Loads the page's description, the runtime and the networks, and shows the interface that fits.

import { amount, bytes, h } from "./dom.js";
import { compare, Engine, label } from "./engine.js";
import { fetchJson } from "./files.js";
import { showImages } from "./images.js";
import { showLatents } from "./latents.js";

const at = (id) => document.getElementById(id);

const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU" };

function report(step, progress) {
  at("loading").hidden = false;
  at("step").textContent = progress ? `${step}: ${bytes(progress.loaded)} of ${bytes(progress.total)}` : step;
  if (progress) at("progress").value = progress.loaded / progress.total;
  else at("progress").removeAttribute("value");
}

function fail(error) {
  at("loading").remove();
  at("status").textContent = "";
  // Not the names of files.
  const words = error.message.replace(/^[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));
  at("main").replaceChildren(
    h("div", { class: "card problem", role: "alert" }, h("h2", {}, "The page cannot run"), h("p", {}, `${words}.`)));
  document.body.dataset.state = "failed";
}

function describe(page) {
  const several = Object.keys(page.networks).length > 1;
  const lines = Object.entries(page.networks).map(([name, network]) =>
    `${several ? `${name[0].toUpperCase()}${name.slice(1)}: ` : ""}${bytes(network.bytes)}, ` +
    `${amount(network.parameters)}parameters, ${amount(network.macs)}multiply-accumulates`);
  const size = page.images ? ` for images of ${page.images.size.join(" × ")}` : "";
  at("about").textContent = page.about;
  at("facts").textContent = `${lines.join(" · ")}${size} · runtime: onnxruntime-web ${page.runtime.version}, ${bytes(page.runtime.wasm.bytes)}`;
}

// Shows which runtime is used, and how far it is from JAX.
function showRuntime(kind, results, note = "") {
  const worst = Math.max(...Object.values(results).map(({ difference }) => difference));
  const close = `checked, at most ${worst.toExponential(0)} from JAX`;
  at("status").replaceChildren(h("strong", {}, NAMES[kind]), ` · ${close}${note ? ` · ${note}` : ""}`);
  document.body.dataset.runtime = kind;
  document.body.dataset.difference = worst;
}

function check(results, page) {
  for (const [name, { difference, psnr, fits }] of Object.entries(results)) {
    if (!fits) {
      throw new Error(`the ${label(page, name)} computes other images here than in JAX: they differ by up to ${difference.toPrecision(2)}, PSNR ${psnr.toFixed(1)} dB`);
    }
  }
}

// WebGPU is used only if its outputs are those of the reference.
async function tryWebgpu(page, current, results) {
  const button = at("webgpu");
  button.disabled = true;
  try {
    const engine = await Engine.open(page, "webgpu", (step, { loaded, total }) => {
      button.textContent = `${step}: ${Math.round((100 * loaded) / total)}%`;
    });
    try {
      button.textContent = "Comparing with JAX";
      const ours = await compare(page, engine);
      check(ours, page);
      const previous = current.engine;
      current.engine = engine;
      showRuntime("webgpu", ours);
      document.dispatchEvent(new Event("runtimechange"));
      previous.close();
    } catch (error) {
      engine.close();
      throw error;
    }
  } catch (error) {
    showRuntime("wasm", results, `WebGPU is not used: ${error.message}`);
  }
  button.hidden = true;
}

async function start() {
  at("unstarted").remove();
  if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, or it is switched off");
  report("Loading the page");
  const page = await fetchJson("page.json");
  describe(page);
  const current = { engine: await Engine.open(page, "wasm", report) };
  report("Comparing with JAX");
  const results = await compare(page, current.engine);
  check(results, page);
  at("loading").remove();
  showRuntime("wasm", results);
  // For the console: kdPage.run("student", {latents: {dtype: "float32", values, shape}}).
  const run = (name, inputs) => current.engine.run(name, inputs);
  globalThis.kdPage = { page, run };
  const show = page.images ? showImages : showLatents;
  await show(page, run, at("main"));
  if (await navigator.gpu?.requestAdapter().catch(() => null)) {
    at("webgpu").textContent = `Try WebGPU (${bytes(page.runtime.webgpu.bytes)})`;
    at("webgpu").hidden = false;
    at("webgpu").addEventListener("click", () => tryWebgpu(page, current, results));
  }
  document.body.dataset.state = "ready";
}

start().catch(fail);
