/** f16, as ggml rounds it. */
import { fromFloats, toFloats } from '../ggml/numbers.ts'

/** The least normal number, and the largest. */
export const [MIN_HALF, MAX_HALF] = [2 ** -14, 65504]

/** f16 bits. What is too large becomes the largest number: infinity times 0 would be NaN. */
export function toHalves(data: Float32Array): Uint16Array {
  if (!data.length) return new Uint16Array(0)
  const clamped = new Float32Array(data.length)
  for (let i = 0; i < data.length; i++) clamped[i] = Math.min(Math.max(data[i]!, -MAX_HALF), MAX_HALF)
  return new Uint16Array(fromFloats('f16', clamped, clamped.length).buffer)
}

/** The numbers that f16 bits stand for. */
export function fromHalves(bits: Uint16Array): Float32Array {
  return toFloats('f16', new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength), bits.length)
}
