/**
 * Weights that a host makes of nested ones when it loads a graph for browsers (docs/design/function-bodies.md, "In a
 * browser"): float32 matrices, or bases packed for MatMulNBits. docs/reference/bundle-details.md section 2 has the format of nested
 * weights.
 */

/** @import {TensorEntry} from "./config.js" */

/** @typedef {(name: string) => {entry: TensorEntry, bytes: Uint8Array}} Tensors gives a tensor of the weights file */

const BLOCK = 32;

/**
 * Function that makes the weight of a location; null for a file's name.
 * @param {string} location such as `layers.0.up.8.float32` or `layers.0.up.packed`
 * @returns {((tensor: Tensors) => Float32Array | Uint8Array) | null}
 */
export function madeWeight(location) {
  const float = /^(.+)\.([468])\.float32$/.exec(location);
  if (float !== null) return (tensor) => dequantized(float[1], Number(float[2]), tensor);
  const base = /^(.+)\.packed$/.exec(location);
  return base === null ? null : (tensor) => packed(base[1], tensor);
}

/**
 * A channel-major base uint4 [K, N] as MatMulNBits reads it, uint8 [N, K / 32, 16].
 * @param {string} matrix
 * @param {Tensors} tensor
 */
function packed(matrix, tensor) {
  const nibbles = tensor(`${matrix}.base`).bytes;
  const [blocks, outputs] = tensor(`${matrix}.scale`).entry.shape;
  const result = new Uint8Array(outputs * blocks * 16);
  for (let channel = 0; channel < blocks * BLOCK; channel++) {
    const [block, byte, shift] = [channel >> 5, (channel & 31) >> 1, 4 * (channel & 1)];
    for (let n = 0; n < outputs; n += 2) {
      const pair = nibbles[(channel * outputs + n) >> 1]; // the number of outputs is even
      const at = (n * blocks + block) * 16 + byte;
      result[at] |= (pair & 15) << shift;
      result[at + blocks * 16] |= (pair >> 4) << shift;
    }
  }
  return result;
}

/**
 * The matrix at a level: float32 [K, N], row by row.
 * @param {string} matrix its name, such as `layers.0.up`
 * @param {number} level 4, 6 or 8
 * @param {Tensors} tensor
 */
function dequantized(matrix, level, tensor) {
  const base = tensor(`${matrix}.base`);
  const scale = tensor(`${matrix}.scale`);
  const zeros = tensor(`${matrix}.zero`).bytes;
  const planes = [1, 2].slice(0, (level - 4) / 2).map((index) => tensor(`${matrix}.plane${index}`).bytes);
  const [blocks, outputs] = scale.entry.shape;
  const steps = halves(scale.bytes);
  const shift = { 4: 0, 6: 6.5, 8: 8 }[level] ?? 0;
  const channelMajor = base.entry.dtype === "uint4";
  const result = new Float32Array(blocks * BLOCK * outputs);
  const nibbles = base.bytes;
  for (let block = 0; block < blocks; block++) {
    for (let k = 0; k < BLOCK; k++) {
      const channel = block * BLOCK + k;
      let out = channel * outputs;
      let one = block * outputs; // place of the block's scale and zero point
      const [shiftBase, shiftPlane, byteOfPlane] = [4 * (k & 1), 2 * (k & 3), k >> 2];
      for (let n = 0; n < outputs; n++, out++, one++) {
        const q = channelMajor
          ? (nibbles[(channel * outputs + n) >> 1] >> (4 * (n & 1))) & 15
          : (nibbles[one * 16 + (k >> 1)] >> shiftBase) & 15;
        let code = 16 * q;
        if (planes.length > 0) code += 4 * ((planes[0][one * 8 + byteOfPlane] >> shiftPlane) & 3);
        if (planes.length > 1) code += (planes[1][one * 8 + byteOfPlane] >> shiftPlane) & 3;
        result[out] = (code - shift - zeros[one]) * steps[one];
      }
    }
  }
  return result;
}

/**
 * Sixteenths of float16 numbers.
 * @param {Uint8Array} bytes
 */
function halves(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const result = new Float32Array(bytes.byteLength / 2);
  for (let i = 0; i < result.length; i++) {
    const bits = view.getUint16(2 * i, true);
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? Infinity : (1 + fraction / 1024) * 2 ** (exponent - 15);
    result[i] = (bits & 0x8000 ? -size : size) / 16;
  }
  return result;
}
