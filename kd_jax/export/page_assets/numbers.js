// Numbers that are the same for a seed in each browser, and paths between them.

function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

// Standard normal numbers: the hash of a counter (the finalizer of MurmurHash3), by Box-Muller.
// u[i] = (mix(mix(seed) + 0x9e3779b9 (i + 1)) + 0.5) / 2^32, for pairs of which
// sqrt(-2 ln u[0]) cos(2 pi u[1]) and sqrt(-2 ln u[0]) sin(2 pi u[1]).
export function normals(seed, count) {
  const key = mix(seed | 0);
  const uniform = (index) => (mix((key + Math.imul(0x9e3779b9, index + 1)) | 0) + 0.5) / 2 ** 32;
  const result = new Float32Array(count);
  for (let index = 0; index < count; index += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(index)));
    const angle = 2 * Math.PI * uniform(index + 1);
    result[index] = radius * Math.cos(angle);
    if (index + 1 < count) result[index + 1] = radius * Math.sin(angle);
  }
  return result;
}

// On the great circle from a to b, where normal numbers of many dimensions lie; t from 0 to 1.
export function interpolate(a, b, t) {
  const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  const [first, second] = Math.sin(angle) < 1e-3
    ? [1 - t, t]
    : [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
  return a.map((value, index) => first * value + second * b[index]);
}
