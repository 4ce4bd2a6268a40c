/** Rows with known contents, and the way into an arena's memory that does not go through the code under test. */
import { fromFloats } from '../ggml/numbers.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type GgmlType, rowBytes } from '../ggml/types.ts'
import type { Arena } from './arena.ts'

/** The memory of a tensor, [bytes]. Host devices only. */
const memory = new WeakMap<Tensor, Uint8Array>()

export function memoryOf(t: Tensor): Uint8Array {
  let bytes = memory.get(t)
  if (!bytes) {
    const words = t.hostWords()
    bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength)
    memory.set(t, bytes)
  }
  return bytes
}

/** Key (or value) bytes of one head's cell, in row order whatever the layout. */
export function cellBytes(arena: Arena, what: 'keys' | 'values', layer: number, head: number, cell: number) {
  const out = new Uint8Array(
    rowBytes(what === 'keys' ? arena.shape.keyType : arena.shape.valueType, arena.shape.headDim),
  )
  eachPiece(arena, what, layer, head, cell, (bytes, from, at, n) => {
    for (let i = 0; i < n; i++) out[at + i] = bytes[from + i]!
  })
  return out
}

export function setCell(
  arena: Arena,
  what: 'keys' | 'values',
  layer: number,
  head: number,
  cell: number,
  row: Uint8Array,
): void {
  eachPiece(arena, what, layer, head, cell, (bytes, from, at, n) => {
    for (let i = 0; i < n; i++) bytes[from + i] = row[at + i]!
  })
}

export function isCell(
  arena: Arena,
  what: 'keys' | 'values',
  layer: number,
  head: number,
  cell: number,
  row: Uint8Array,
): boolean {
  let same = true
  eachPiece(arena, what, layer, head, cell, (bytes, from, at, n) => {
    for (let i = 0; i < n; i++) same &&= bytes[from + i] === row[at + i]
  })
  return same
}

function eachPiece(
  arena: Arena,
  what: 'keys' | 'values',
  layer: number,
  head: number,
  cell: number,
  visit: (bytes: Uint8Array, from: number, at: number, n: number) => void,
): void {
  const t = what === 'keys' ? arena.keys(layer) : arena.values(layer)
  const bytes = memoryOf(t)
  if (what === 'keys' || !arena.shape.valuesTransposed) {
    visit(bytes, head * t.nb[2] + cell * t.nb[1], 0, t.nb[1])
    return
  }
  for (let i = 0; i < arena.shape.headDim; i++)
    visit(bytes, head * t.nb[2] + i * t.nb[1] + cell * t.nb[0], i * t.nb[0], t.nb[0])
}

/** Prime, so that rows of different layers, heads and ids meet rarely. */
const ROWS = 251

/** Rows of about normal numbers, and their bytes in each type; row `i` is the same wherever it is asked for. */
export class Rows {
  readonly #d: number
  readonly #floats: Float32Array[]
  readonly #bytes = new Map<GgmlType, Uint8Array[]>()

  constructor(headDim: number, normal: () => number) {
    this.#d = headDim
    this.#floats = Array.from({ length: ROWS }, () => Float32Array.from({ length: headDim }, normal))
  }

  /** What row `id` has in a layer and head. */
  index(id: number, what: 'keys' | 'values', layer: number, head: number): number {
    return (id * 7 + layer * 13 + head * 29 + (what === 'keys' ? 0 : 101)) % ROWS
  }

  floats(index: number): Float32Array {
    return this.#floats[index]!
  }

  bytes(index: number, type: GgmlType): Uint8Array {
    let all = this.#bytes.get(type)
    if (!all) this.#bytes.set(type, (all = this.#floats.map((f) => fromFloats(type, f, this.#d))))
    return all[index]!
  }
}
