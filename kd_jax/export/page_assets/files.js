// Files of the page, read whole and checked.

// The bytes of {file, bytes, sha256}, a path beside the page. Throws an Error in words.
export async function fetchBytes({ file, bytes, sha256 }, progress = () => {}) {
  const response = await request(file);
  const data = new Uint8Array(bytes);
  let loaded = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error(`${file} was cut off after ${loaded} of ${bytes} bytes: load the page again`);
    });
    if (done) break;
    if (loaded + value.length <= bytes) data.set(value, loaded);
    loaded += value.length;
    progress(Math.min(loaded, bytes), bytes);
  }
  if (loaded !== bytes) {
    throw new Error(`${file} is damaged: it has ${loaded} bytes, not ${bytes}. Export the page again, or copy the file again`);
  }
  // Browsers have this for https and localhost only.
  if (globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const hex = Array.from(digest, (x) => x.toString(16).padStart(2, "0")).join("");
    if (hex !== sha256) {
      throw new Error(`${file} is damaged: its bytes are not those that were exported. Copy the file again`);
    }
  }
  return data;
}

export async function fetchJson(file) {
  const response = await request(file);
  try {
    return await response.json();
  } catch {
    throw new Error(`${file} is damaged: it is not JSON. Export the page again`);
  }
}

async function request(file) {
  let response;
  try {
    response = await fetch(new URL(file, import.meta.url));
  } catch {
    throw new Error(`${file} cannot be loaded: the server does not answer`);
  }
  if (!response.ok) {
    throw new Error(`${file} is missing: the server answers ${response.status}. The whole folder of the export is needed`);
  }
  return response;
}
