/**
 * The GGUF format as data: ids, sizes, the limits this reader keeps, and what a parsed file looks like.
 *
 * Layout, all little-endian: magic, version u32, tensor count u64, key count u64, the keys with their values, the tensor
 * infos (name, dimensions, type, offset), padding to the alignment, then the tensor data. Host arrays are made by
 * copying bytes, so a big-endian host is not supported.
 */
import type { GgmlType } from '../types.ts'
import type { GgufMetadata } from './metadata.ts'

export const MAGIC = 'GGUF'
/** Versions read; 3 is written. Version 1 had 32-bit counts, version 3 only added big-endian files. */
export const VERSIONS = [2, 3] as const
export const DEFAULT_ALIGNMENT = 32
/** GGML_MAX_NAME is 64 with its terminating NUL. */
export const MAX_TENSOR_NAME_BYTES = 63
export const MAX_DIMS = 4
/** From the GGUF specification. */
export const MAX_KEY_BYTES = 65_535

/**
 * What a hostile header may cost at most. Real headers are far below: the largest vocabularies (260K tokens, 510K
 * merges) take 17 MiB and 0.8M strings, the largest models 50K tensors and 100 keys.
 */
export const LIMITS = {
  headerBytes: 128 * 2 ** 20,
  keys: 2 ** 16,
  tensors: 2 ** 18,
  /** Strings in arrays, over the whole file. */
  strings: 2 ** 22,
  /** Arrays inside arrays, over the whole file. */
  nestedArrays: 2 ** 16,
  /** An array of plain values has depth 1. */
  arrayDepth: 8,
  /** Strings whose bytes are kept because they are not UTF-8. */
  invalidStrings: 2 ** 16,
  /** `split.count` is a u16. */
  splits: 65_535,
} as const

/** Ids of the 13 metadata value types. */
export const VALUE_IDS = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const

export type GgufValueType = keyof typeof VALUE_IDS

const VALUE_BY_ID = Object.entries(VALUE_IDS).sort((a, b) => a[1] - b[1]) as [GgufValueType, number][]

export function valueTypeFromId(id: number): GgufValueType | undefined {
  return VALUE_BY_ID[id]?.[0]
}

/** Fewest bytes that a value of each type takes inside an array: a string is at least its length, an array its head. */
export const VALUE_BYTES: { readonly [K in GgufValueType]: number } = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  array: 12,
  u64: 8,
  i64: 8,
  f64: 8,
}

/** The typed array that holds an array of each number type. */
export const ARRAY_TYPES = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f32: Float32Array,
  u64: BigUint64Array,
  i64: BigInt64Array,
  f64: Float64Array,
} as const

export type GgufNumberType = keyof typeof ARRAY_TYPES

export type GgufScalar =
  | { readonly type: Exclude<GgufNumberType, 'u64' | 'i64'>; readonly value: number }
  /** A bigint only where a number would not be exact. */
  | { readonly type: 'u64' | 'i64'; readonly value: number | bigint }
  | { readonly type: 'bool'; readonly value: boolean }
  /** `bytes` is there only when they are not UTF-8; `value` then holds U+FFFD where they are not. */
  | { readonly type: 'string'; readonly value: string; readonly bytes?: Uint8Array }

export type GgufArray =
  | {
      [K in GgufNumberType]: {
        readonly type: 'array'
        readonly of: K
        readonly value: InstanceType<(typeof ARRAY_TYPES)[K]>
      }
    }[GgufNumberType]
  /** Zeros and ones. */
  | { readonly type: 'array'; readonly of: 'bool'; readonly value: Uint8Array }
  /** `bytes` holds, by index, the strings that are not UTF-8. */
  | {
      readonly type: 'array'
      readonly of: 'string'
      readonly value: readonly string[]
      readonly bytes?: ReadonlyMap<number, Uint8Array>
    }
  | { readonly type: 'array'; readonly of: 'array'; readonly value: readonly GgufArray[] }

export type GgufValue = GgufScalar | GgufArray

/** Four dimensions, ggml's order: fastest first, padded with 1. */
export type Shape = readonly [number, number, number, number]

export interface GgufTensor {
  readonly name: string
  readonly type: GgmlType
  readonly ne: Shape
  /** Dimensions the file lists, 1 to 4. */
  readonly nDims: number
  readonly bytes: number
  /** Index into `parts`. */
  readonly part: number
  /** Bytes from the start of that part file. */
  readonly offset: number
}

export interface GgufPart {
  readonly path: string
  /** Bytes of the file. */
  readonly size: number
  /** Where the tensor data begin: a multiple of the alignment, or the end of the header when there are no tensors. */
  readonly dataOffset: number
}

export interface GgufFile {
  readonly path: string
  readonly version: number
  readonly alignment: number
  /** Of the first part; the others repeat only `split.*`. */
  readonly metadata: GgufMetadata
  /** In file order. Every range lies inside its part, and no two overlap. */
  readonly tensors: ReadonlyMap<string, GgufTensor>
  readonly parts: readonly GgufPart[]
  /** Of all part files together. */
  readonly totalBytes: number
}

/** A name from a file, safe to print: quoted, escaped, cut. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text)
}

export function padTo(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment
}
