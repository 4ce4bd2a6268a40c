/**
 * Codes in planes of 2 bits, each a row of ggml's `tq2_0`. A `tq2_0` block of 256 elements is 64 bytes of four codes each and a scale,
 * f16, that is 1 here. Element i has its code in byte i % 32 of the block's half i / 128, in bits 2 l and 2 l + 1, l = (i / 32) % 4.
 */
import { GGML_TYPES } from '../ggml/types.ts'

const { block: ELEMENTS, bytes: BYTES } = GGML_TYPES.tq2_0
const HALF = ELEMENTS / 2
/** Bytes of a half, and how far apart the elements of one byte are. */
const LANES = HALF / 4
/** 1 in f16, low byte first. */
const ONE = [0x00, 0x3c] as const

/**
 * One plane behind the other, the one of the low bits first.
 * @param codes below 4^planes, a multiple of 256 of them
 */
export function pack(codes: Uint8Array, planes: number): Uint8Array {
  const blocks = codes.length / ELEMENTS
  const out = new Uint8Array(planes * blocks * BYTES)
  let to = 0
  for (let plane = 0; plane < planes; plane++)
    for (let block = 0; block < blocks; block++) {
      for (let half = block * ELEMENTS; half < (block + 1) * ELEMENTS; half += HALF)
        for (let at = half; at < half + LANES; at++) out[to++] = fourCodes(codes, at, 2 * plane)
      out.set(ONE, to)
      to += ONE.length
    }
  return out
}

function fourCodes(codes: Uint8Array, at: number, shift: number): number {
  let byte = 0
  for (let l = 0; l < 4; l++) byte |= ((codes[at + l * LANES]! >> shift) & 3) << (2 * l)
  return byte
}

/** Sum over planes p of 4^p v_p, where v_p is what ggml reads in them: two bits, less 1. */
export function unpack(bytes: Uint8Array, planes: number): Int8Array {
  const planeBytes = bytes.length / planes
  const out = new Int8Array((planeBytes / BYTES) * ELEMENTS)
  for (let at = 0; at < out.length; at++) {
    const i = at % ELEMENTS
    const from = Math.floor(at / ELEMENTS) * BYTES + Math.floor(i / HALF) * LANES + (i % LANES)
    const shift = 2 * (Math.floor(i / LANES) % 4)
    for (let p = 0; p < planes; p++) out[at]! += 4 ** p * (((bytes[p * planeBytes + from]! >> shift) & 3) - 1)
  }
  return out
}
