// Networks in a worker, and their comparison with the outputs that were computed by JAX.

import { fetchBytes } from "./files.js";

export class Engine {
  // A runtime of the kind "wasm" or "webgpu" with the networks of the page.
  static async open(page, kind, report) {
    const engine = new Engine(page, kind);
    try {
      await engine.call("open", { kind, script: page.runtime[kind].script, file: page.runtime[kind] },
        (share) => report("Loading the runtime", share));
      for (const [name, network] of Object.entries(page.networks)) {
        await engine.call("load", { name, file: network }, (share) => report(`Loading the ${label(page, name)}`, share));
      }
    } catch (error) {
      engine.close();
      throw error;
    }
    return engine;
  }

  constructor(page, kind) {
    this.page = page;
    this.kind = kind;
    this.pending = new Map();
    this.next = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => {
      for (const { reject } of this.pending.values()) {
        reject(new Error(`the runtime does not start in this browser${event.message ? ` (${event.message})` : ""}`));
      }
      this.pending.clear();
    };
  }

  receive({ id, progress, result, problem }) {
    const call = this.pending.get(id);
    if (!call) return;
    if (progress) return void call.report(progress);
    this.pending.delete(id);
    if (problem) call.reject(new Error(problem));
    else call.resolve(result);
  }

  call(name, argument, report = () => {}) {
    return new Promise((resolve, reject) => {
      const id = this.next++;
      this.pending.set(id, { resolve, reject, report });
      this.worker.postMessage({ id, call: name, argument });
    });
  }

  // inputs: {name: {dtype, values, shape}} -> {values, shape, ms}
  run(name, inputs) {
    return this.call("run", { name, inputs });
  }

  // Ends the worker after its calls.
  async close() {
    while (this.pending.size) await new Promise((resolve) => setTimeout(resolve, 20));
    this.worker.terminate();
  }
}

export function label(page, name) {
  return Object.keys(page.networks).length > 1 ? name : "model";
}

// How the networks' outputs differ from JAX's: {difference, psnr, fits} for each.
export async function compare(page, engine) {
  const { buffer } = await fetchBytes(page.reference);
  const inputs = {};
  page.inputs.forEach((slot, index) => {
    const { shape, start, count } = page.reference.inputs[index];
    const kind = slot.dtype === "int32" ? Int32Array : Float32Array;
    inputs[slot.name] = { dtype: slot.dtype, values: new kind(buffer, start, count), shape };
  });
  const results = {};
  for (const [name, network] of Object.entries(page.networks)) {
    const { values, shape } = await engine.run(name, inputs);
    const { start, count, step, shape: expected } = network.output;
    if (String(shape) !== String(expected)) throw new Error(`the ${label(page, name)} returns images of ${shape}, not ${expected}`);
    const reference = new Float32Array(buffer, start, count);
    let difference = 0, peak = 0, squares = 0, low = Infinity, high = -Infinity;
    reference.forEach((value, index) => {
      const error = Math.abs(values[index * step] - value);
      difference = error <= difference ? difference : error; // NaN stays
      squares += error * error;
      peak = Math.max(peak, Math.abs(value));
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
    const psnr = squares ? 10 * Math.log10((high - low) ** 2 / (squares / count)) : Infinity;
    const fits = difference <= (network.share ?? Infinity) * peak && psnr >= network.psnr;
    results[name] = { difference, psnr, fits };
  }
  return results;
}
