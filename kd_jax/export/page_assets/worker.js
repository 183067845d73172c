// The thread of the networks: the page stays responsive while one runs.

import { fetchBytes } from "./files.js";

let runtime, provider;
const sessions = new Map();

const calls = {
  async open({ kind, script, file }, progress) {
    provider = kind;
    const binary = await fetchBytes(file, progress);
    runtime = await import(new URL(script, import.meta.url));
    // More threads would need a server that isolates the page.
    runtime.env.wasm.numThreads = 1;
    runtime.env.wasm.wasmBinary = binary.buffer;
    runtime.env.logLevel = "error";
  },

  async load({ name, file }, progress) {
    const model = await fetchBytes(file, progress);
    const options = { executionProviders: [provider], graphOptimizationLevel: "all", logSeverityLevel: 3 };
    sessions.set(name, await runtime.InferenceSession.create(model, options));
  },

  async run({ name, inputs }) {
    const feeds = {};
    for (const [key, { dtype, values, shape }] of Object.entries(inputs)) {
      feeds[key] = new runtime.Tensor(dtype, values, shape);
    }
    const start = performance.now();
    const { output } = await sessions.get(name).run(feeds);
    const values = await output.getData();
    const ms = performance.now() - start;
    const result = { values: new Float32Array(values), shape: [...output.dims], ms };
    output.dispose();
    return result;
  },
};

// One call after another: a session refuses a second run at once.
let queue = Promise.resolve();

self.onmessage = ({ data: { id, call, argument } }) => {
  const progress = (loaded, total) => self.postMessage({ id, progress: { loaded, total } });
  queue = queue.then(async () => {
    try {
      const result = await calls[call](argument, progress);
      self.postMessage({ id, result }, result ? [result.values.buffer] : []);
    } catch (error) {
      self.postMessage({ id, problem: String(error?.message ?? error) });
    }
  });
};
