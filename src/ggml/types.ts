/**
 * ggml's tensor types: ids, block lengths and block bytes of ggml 0.23 (a test compares every row with the loaded
 * library). `block` elements of a row take `bytes` bytes; a row length must be a multiple of `block`.
 */
export const GGML_TYPES = {
  f32: { id: 0, block: 1, bytes: 4 },
  f16: { id: 1, block: 1, bytes: 2 },
  q4_0: { id: 2, block: 32, bytes: 18 },
  q4_1: { id: 3, block: 32, bytes: 20 },
  q5_0: { id: 6, block: 32, bytes: 22 },
  q5_1: { id: 7, block: 32, bytes: 24 },
  q8_0: { id: 8, block: 32, bytes: 34 },
  q8_1: { id: 9, block: 32, bytes: 36 },
  q2_K: { id: 10, block: 256, bytes: 84 },
  q3_K: { id: 11, block: 256, bytes: 110 },
  q4_K: { id: 12, block: 256, bytes: 144 },
  q5_K: { id: 13, block: 256, bytes: 176 },
  q6_K: { id: 14, block: 256, bytes: 210 },
  q8_K: { id: 15, block: 256, bytes: 292 },
  iq2_xxs: { id: 16, block: 256, bytes: 66 },
  iq2_xs: { id: 17, block: 256, bytes: 74 },
  iq3_xxs: { id: 18, block: 256, bytes: 98 },
  iq1_s: { id: 19, block: 256, bytes: 50 },
  iq4_nl: { id: 20, block: 32, bytes: 18 },
  iq3_s: { id: 21, block: 256, bytes: 110 },
  iq2_s: { id: 22, block: 256, bytes: 82 },
  iq4_xs: { id: 23, block: 256, bytes: 136 },
  i8: { id: 24, block: 1, bytes: 1 },
  i16: { id: 25, block: 1, bytes: 2 },
  i32: { id: 26, block: 1, bytes: 4 },
  i64: { id: 27, block: 1, bytes: 8 },
  f64: { id: 28, block: 1, bytes: 8 },
  iq1_m: { id: 29, block: 256, bytes: 56 },
  bf16: { id: 30, block: 1, bytes: 2 },
  tq1_0: { id: 34, block: 256, bytes: 54 },
  tq2_0: { id: 35, block: 256, bytes: 66 },
  mxfp4: { id: 39, block: 32, bytes: 17 },
  nvfp4: { id: 40, block: 64, bytes: 36 },
  q1_0: { id: 41, block: 128, bytes: 18 },
  q2_0: { id: 42, block: 64, bytes: 18 },
} as const satisfies Record<string, { id: number; block: number; bytes: number }>

export type GgmlType = keyof typeof GGML_TYPES

const BY_ID = new Map<number, GgmlType>(Object.entries(GGML_TYPES).map(([name, t]) => [t.id, name as GgmlType]))

/** The type with this id in a file or a struct; undefined for unknown or removed ids. */
export function typeFromId(id: number): GgmlType | undefined {
  return BY_ID.get(id)
}

/** Bytes of a row of `length` elements. `length` must be a multiple of the block. */
export function rowBytes(type: GgmlType, length: number): number {
  const { block, bytes } = GGML_TYPES[type]
  return (length / block) * bytes
}

export function isQuantized(type: GgmlType): boolean {
  return GGML_TYPES[type].block > 1
}

const FLOATS: ReadonlySet<GgmlType> = new Set(['f32', 'f16', 'bf16'])

/** Block types that ggml can quantise f32 rows to without an importance matrix. */
const QUANTISABLE: ReadonlySet<GgmlType> = new Set([
  ...(['q4_0', 'q4_1', 'q5_0', 'q5_1', 'q8_0', 'iq4_nl', 'mxfp4'] as const),
  ...(['q2_K', 'q3_K', 'q4_K', 'q5_K', 'q6_K', 'iq4_xs'] as const),
])

/** Types that rows of f32 numbers can be converted to. */
export function canHoldFloats(type: GgmlType): boolean {
  return FLOATS.has(type) || QUANTISABLE.has(type)
}

/** Types that can be converted to f32. q8_1 and q8_K only hold activations inside products. */
export function canBecomeFloats(type: GgmlType): boolean {
  return FLOATS.has(type) || (isQuantized(type) && type !== 'q8_1' && type !== 'q8_K')
}
