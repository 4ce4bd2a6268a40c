/**
 * Rows of the cache as numbers: read, written, moved into an arena of another type, merged. Through small graphs, so that it
 * works on every device and rounds as the executor does; for policies between steps, not for every token.
 *
 * Use a runner of its own: a graph that needs more memory than a runner has makes the runner's older graphs worthless.
 * Everything is checked before ggml sees it. Each function either does all of its work, or throws and leaves the rows as
 * they were; a graph that fails half way (NATIVE_FAILED, ABORTED) can leave some of them written.
 */
import { KvasirError } from '../contract/errors.ts'
import type { Runner } from '../ggml/backend.ts'
import { Context } from '../ggml/context.ts'
import { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type Arena, PAGE_CELLS } from './arena.ts'
import type { CodeArena } from './code-arena.ts'
import { decode } from './codes.ts'
import type { BlockRef, Column } from './column.ts'
import type { KvSequence } from './sequence.ts'
import type { KvStore } from './store.ts'

export interface RowData {
  /** [d, n, heads] */
  readonly keys: Float32Array
  /** [d, n, heads] */
  readonly values: Float32Array
}

export interface MergeSource {
  readonly cell: number
  readonly weight: number
  /** Of its value. Absent: as its key's, `weight`. */
  readonly valueWeight?: number
}

/** One row out of several: `into` keeps its cell and its position. */
export interface MergeGroup {
  /** Cell of a row; it only counts towards the sum if it is in `from` too. */
  readonly into: number
  readonly from: readonly MergeSource[]
}

/**
 * Keys and values of a layer, dequantised, whatever format they are in.
 * @param cells of the column of each head, below its end; they may repeat
 * @throws KvasirError INVALID_ARGUMENT
 */
export function readRows(
  runner: Runner,
  store: KvStore,
  s: KvSequence,
  layer: number,
  head: number | 'all',
  cells: readonly number[],
): RowData {
  const heads = checkHeads(store, s, layer, head)
  for (const h of heads) checkCells(s.column(layer, h, store.dims.kvHeads), cells)
  const out = read(runner, store.dims.headDim, heads.length, cells.length, parts(store, s, layer, heads, cells))
  if (s.layout === 'ragged') for (const [i, h] of heads.entries()) finishRows(store, s, layer, h, i, cells, out)
  return out
}

/** What graphs do not read: rows in codes, and the lengths of rows whose direction two layers share. */
function finishRows(
  store: KvStore,
  s: KvSequence,
  layer: number,
  head: number,
  index: number,
  cells: readonly number[],
  { keys, values }: RowData,
): void {
  const { headDim: d, kvHeads } = store.dims
  const c = s.column(layer, head, kvHeads)
  const scales = [c.marks('keyScale'), c.marks('valueScale')] as const
  const known = new Map<number, readonly Float32Array[]>()
  for (const [i, cell] of cells.entries()) {
    const at = (index * cells.length + i) * d
    const number = Math.floor(cell / PAGE_CELLS)
    const b = c.blocks[number]!
    const arena = store.arenas[b.arena]!
    if (arena.kind === 'codes') {
      const block = known.get(number) ?? decodedBlock(arena, b.layer ?? layer, head, b.page)
      known.set(number, block)
      const row = (cell % PAGE_CELLS) * d
      keys.set(block[0]!.subarray(row, row + d), at)
      values.set(block[1]!.subarray(row, row + d), at)
    }
    for (const [k, data] of [keys, values].entries()) {
      const by = scales[k]?.[cell] ?? 1
      if (by !== 1) for (let e = at; e < at + d; e++) data[e]! *= by
    }
  }
}

/** Keys and values of a block, f32 [d, 32] each. */
function decodedBlock(arena: CodeArena, layer: number, head: number, page: number): readonly Float32Array[] {
  const { keys, values } = arena.read(layer, head, page)
  return [decode(keys, arena.format.keys, arena.dims.headDim), decode(values, arena.format.values, arena.dims.headDim)]
}

/**
 * The inverse: quantises rows into cells, each given once. Blocks that others hold too are copied first.
 * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET
 */
export function writeRows(
  runner: Runner,
  store: KvStore,
  s: KvSequence,
  layer: number,
  head: number | 'all',
  cells: readonly number[],
  rows: RowData,
): void {
  const { kvHeads, headDim } = store.dims
  const heads = checkHeads(store, s, layer, head)
  for (const h of heads) checkCells(s.column(layer, h, kvHeads), cells)
  checkDistinct(cells)
  for (const [name, data] of Object.entries({ keys: rows.keys, values: rows.values })) {
    const want = headDim * cells.length * heads.length
    if (data.length !== want)
      invalid(`${name} [${headDim}, ${cells.length}, ${heads.length}] are ${want} numbers, got ${data.length}`)
    checkFinite(name, data)
  }
  store.own(s, cells, s.layout === 'uniform' ? 0 : heads.map((h) => layer * kvHeads + h))
  write(runner, headDim, cells.length, parts(store, s, layer, heads, cells), rows)
}

/**
 * Moves rows of a column into blocks of another arena (of another type). Holes in blocks that the column has there are
 * filled first. Blocks that are empty afterwards are released; other rows can be in other cells than before.
 * @param column of a ragged sequence; 0 of a uniform one: the rows move in all layers and heads
 * @returns bytes by which the store is emptier now; below 0 where new blocks are filled in part or the old ones remain
 * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET when the other arena has no room
 */
export function requantize(
  runner: Runner,
  store: KvStore,
  s: KvSequence,
  column: number,
  cells: readonly number[],
  arena: number,
): number {
  const c = checkRows(store, s, column, cells)
  checkDistinct(cells)
  if (!store.arenas[arena]) invalid(`arena ${arena} of a store of ${store.arenas.length}`)
  const before = store.usedBytes
  const arenaOf = (cell: number) => c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena
  let from = cells.filter((cell) => arenaOf(cell) !== arena)
  if (!from.length) return 0
  const into: number[] = []
  if (arena === s.arena) {
    // Where the sequence grows: behind its last row, as if they were new.
    const first = store.reserveColumn(s, column, from.length)
    for (let i = 0; i < from.length; i++) into.push(first + i)
  } else {
    for (let i = 0; i < Math.floor(c.end / PAGE_CELLS) && into.length < from.length; i++)
      if (c.blocks[i]!.arena === arena && !store.isBlockShared(s, column, i))
        for (let cell = i * PAGE_CELLS; cell < (i + 1) * PAGE_CELLS && into.length < from.length; cell++)
          if (c.positions[cell]! < 0) into.push(cell)
    const blocks = Math.ceil((from.length - into.length) / PAGE_CELLS)
    const first = store.insertBlocks(s, column, blocks, arena)
    from = from.map((cell) => (cell < first ? cell : cell + blocks * PAGE_CELLS))
    for (let cell = first; into.length < from.length; cell++) into.push(cell)
  }
  try {
    for (const [layer, heads] of headsOf(store, s, column)) {
      const rows = read(runner, store.dims.headDim, heads.length, from.length, parts(store, s, layer, heads, from))
      write(runner, store.dims.headDim, from.length, parts(store, s, layer, heads, into), rows)
    }
  } catch (error) {
    store.drop(s, column, []) // the blocks that no row was put in
    throw error
  }
  for (const [i, cell] of into.entries()) {
    c.setPosition(cell, c.positions[from[i]!]!)
    c.copyMarks(c, from[i]!, cell)
  }
  store.drop(s, column, from)
  return before - store.usedBytes
}

/**
 * Replaces rows by weighted sums of their keys and of their values. All are read before any is written, so a row can count
 * in several groups. Every row of a `from` that is not the `into` of a group is dropped; others can be in other cells than
 * before.
 * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET when a shared block must be copied and there is no room
 */
export function mergeRows(
  runner: Runner,
  store: KvStore,
  s: KvSequence,
  column: number,
  groups: readonly MergeGroup[],
): void {
  const into = groups.map((g) => g.into)
  const from = [...new Set(groups.flatMap((g) => g.from.map((f) => f.cell)))]
  checkRows(store, s, column, into)
  checkRows(store, s, column, from)
  checkDistinct(into)
  for (const g of groups) {
    if (!g.from.length) invalid(`merge into cell ${g.into}: no rows to merge`)
    for (const { cell, weight, valueWeight = weight } of g.from)
      if (!Number.isFinite(weight) || !Number.isFinite(valueWeight))
        invalid(`merge into cell ${g.into}: weights ${weight} and ${valueWeight} of cell ${cell}`)
  }
  if (!groups.length) return
  const d = store.dims.headDim
  const indexOf = new Map(from.map((cell, i) => [cell, i]))
  const merged: { layer: number; heads: readonly number[]; rows: RowData }[] = []
  for (const [layer, heads] of headsOf(store, s, column)) {
    const rows = read(runner, d, heads.length, from.length, parts(store, s, layer, heads, from))
    const sum = (data: Float32Array, weightOf: (source: MergeSource) => number) => {
      const out = new Float32Array(d * groups.length * heads.length)
      const row = new Float64Array(d)
      for (let h = 0; h < heads.length; h++)
        for (const [g, group] of groups.entries()) {
          row.fill(0)
          for (const source of group.from) {
            const at = (h * from.length + indexOf.get(source.cell)!) * d
            const weight = weightOf(source)
            for (let i = 0; i < d; i++) row[i]! += weight * data[at + i]!
          }
          out.set(row, (h * groups.length + g) * d)
        }
      return out
    }
    const keys = sum(rows.keys, (s) => s.weight)
    const values = sum(rows.values, (s) => s.valueWeight ?? s.weight)
    checkFinite('merged keys', keys)
    checkFinite('merged values', values)
    merged.push({ layer, heads, rows: { keys, values } })
  }
  store.own(s, into, column)
  for (const { layer, heads, rows } of merged)
    write(runner, d, groups.length, parts(store, s, layer, heads, into), rows)
  const kept = new Set(into)
  store.drop(
    s,
    column,
    from.filter((cell) => !kept.has(cell)),
  )
}

// checks -----------------------------------------------------------------------------------------------------------------

function invalid(message: string): never {
  throw new KvasirError('INVALID_ARGUMENT', message)
}

function checkSequence(store: KvStore, s: KvSequence): void {
  if (store.sequence(s.id) !== s) invalid(`sequence ${s.id} is of another store`)
}

/** The heads that are meant. */
function checkHeads(store: KvStore, s: KvSequence, layer: number, head: number | 'all'): number[] {
  checkSequence(store, s)
  const { layers, kvHeads } = store.dims
  const inside = (i: number, n: number) => Number.isInteger(i) && i >= 0 && i < n
  if (!inside(layer, layers)) invalid(`layer ${layer} of ${layers}`)
  if (head !== 'all' && !inside(head, kvHeads)) invalid(`head ${head} of ${kvHeads}`)
  return head === 'all' ? Array.from({ length: kvHeads }, (_, h) => h) : [head]
}

function checkCells(c: Column, cells: readonly number[]): void {
  for (const cell of cells)
    if (!(Number.isInteger(cell) && cell >= 0 && cell < c.end)) invalid(`cell ${cell} of a column of ${c.end}`)
}

/** Cells of rows, no holes. */
function checkRows(store: KvStore, s: KvSequence, column: number, cells: readonly number[]): Column {
  checkSequence(store, s)
  const c = s.columns[column]
  if (!c) invalid(`column ${column} of a sequence of ${s.columns.length}`)
  checkCells(c, cells)
  for (const cell of cells) if (c.positions[cell]! < 0) invalid(`cell ${cell} holds no row`)
  return c
}

function checkDistinct(cells: readonly number[]): void {
  const seen = new Set<number>()
  for (const cell of cells) {
    if (seen.has(cell)) invalid(`cell ${cell} is given twice`)
    seen.add(cell)
  }
}

/** A masked row still takes part in products, and 0 x NaN is NaN. */
function checkFinite(name: string, data: Float32Array): void {
  const at = data.findIndex((x) => !Number.isFinite(x))
  if (at >= 0) invalid(`${name}: number ${at} is ${data[at]}`)
}

// graphs -----------------------------------------------------------------------------------------------------------------

/** Rows of some heads in one arena and layer. */
interface Part {
  readonly arena: Arena
  readonly layer: number
  readonly firstHead: number
  readonly heads: number
  /** Cells in the arena. */
  readonly cells: Int32Array
  /** Which of the rows they are, and from which head on. */
  readonly rows: readonly number[]
  readonly headAt: number
}

/** The layers and heads that a column holds for. */
function headsOf(store: KvStore, s: KvSequence, column: number): [layer: number, heads: number[]][] {
  const { layers, kvHeads } = store.dims
  if (s.layout === 'ragged') return [[Math.floor(column / kvHeads), [column % kvHeads]]]
  const heads = Array.from({ length: kvHeads }, (_, h) => h)
  return Array.from({ length: layers }, (_, layer) => [layer, heads])
}

/** `heads` are one, or all. */
function parts(
  store: KvStore,
  s: KvSequence,
  layer: number,
  heads: readonly number[],
  cells: readonly number[],
): Part[] {
  const out: Part[] = []
  const together = s.layout === 'uniform' ? heads.length : 1
  for (let k = 0; k < heads.length; k += together) {
    const c = s.column(layer, heads[k]!, store.dims.kvHeads)
    const bySource = new Map<string, { readonly block: BlockRef; readonly rows: number[] }>()
    for (const [i, cell] of cells.entries()) {
      const block = c.blocks[Math.floor(cell / PAGE_CELLS)]!
      if (store.arenas[block.arena]!.kind === 'codes') continue
      const source = `${block.arena} ${block.layer ?? ''}`
      const list = bySource.get(source)
      if (list) list.rows.push(i)
      else bySource.set(source, { block, rows: [i] })
    }
    for (const { block, rows } of bySource.values())
      out.push({
        arena: store.rowArena(block.arena),
        layer: block.layer ?? layer,
        firstHead: heads[k]!,
        heads: together,
        cells: Int32Array.from(rows, (i) => c.physical(cells[i]!)),
        rows,
        headAt: k,
      })
  }
  return out
}

/** Upper bound of the tensors that a part adds. */
const TENSORS_PER_PART = 12

function graphFor(list: readonly Part[]): Context {
  const tensors = TENSORS_PER_PART * list.length
  return new Context({ tensors, graphNodes: 2 * tensors })
}

function run(runner: Runner, graph: Graph): void {
  if (runner.run(graph) === 'aborted') throw new KvasirError('ABORTED', 'moving rows of the KV cache was aborted')
}

function headSlice(c: Context, t: Tensor, p: Part): Tensor {
  return ops.slice(c, t, 2, p.firstHead, p.firstHead + p.heads)
}

/** Cells per head, [n, heads]. */
function cellIds(p: Part): Int32Array {
  const n = p.cells.length
  const ids = new Int32Array(n * p.heads)
  for (let h = 0; h < p.heads; h++) ids.set(p.cells, h * n)
  return ids
}

/** Where each element of rows of transposed values lies, [d, n, heads]. */
function elementIds({ arena, cells, firstHead, heads }: Part): Int32Array {
  const d = arena.shape.headDim
  const ids = new Int32Array(d * cells.length * heads)
  let at = 0
  for (let h = firstHead; h < firstHead + heads; h++)
    for (const cell of cells) for (let i = 0; i < d; i++) ids[at++] = (h * d + i) * arena.cells + cell
  return ids
}

/** Values of all heads as rows of one element. */
function elementRows(c: Context, p: Part): Tensor {
  const values = p.arena.values(p.layer)
  return ops.reshape(c, values, 1, values.elements)
}

/** Between the rows of a part, f32 [d, n of the part, heads of the part], and all rows, [d, n, heads]. */
function scatter(p: Part, d: number, n: number, all: Float32Array, part: Float32Array): void {
  for (let h = 0; h < p.heads; h++)
    for (const [k, row] of p.rows.entries()) {
      const from = (h * p.rows.length + k) * d
      all.set(part.subarray(from, from + d), ((p.headAt + h) * n + row) * d)
    }
}

function gather(p: Part, d: number, n: number, all: Float32Array): Float32Array {
  const part = new Float32Array(d * p.rows.length * p.heads)
  for (let h = 0; h < p.heads; h++)
    for (const [k, row] of p.rows.entries()) {
      const from = ((p.headAt + h) * n + row) * d
      part.set(all.subarray(from, from + d), (h * p.rows.length + k) * d)
    }
  return part
}

function read(runner: Runner, d: number, heads: number, n: number, list: readonly Part[]): RowData {
  const keys = new Float32Array(d * n * heads)
  const values = new Float32Array(d * n * heads)
  if (!list.length) return { keys, values }
  const c = graphFor(list)
  try {
    const graph = new Graph(c)
    const feeds: [Tensor, Int32Array][] = []
    const outs = list.map((p) => {
      const m = p.cells.length
      const ids = c.tensor('i32', m, p.heads).asInput()
      feeds.push([ids, cellIds(p)])
      const k = ops.getRows(c, headSlice(c, p.arena.keys(p.layer), p), ids).asOutput() // f32 [d, m, heads]
      let v: Tensor
      if (p.arena.shape.valuesTransposed) {
        const elements = c.tensor('i32', d * m * p.heads).asInput()
        feeds.push([elements, elementIds(p)])
        v = ops.getRows(c, elementRows(c, p), elements).asOutput() // f32 [1, d * m * heads]
      } else v = ops.getRows(c, headSlice(c, p.arena.values(p.layer), p), ids).asOutput() // f32 [d, m, heads]
      graph.expand(k)
      graph.expand(v)
      return { p, k, v }
    })
    runner.allocate(graph)
    for (const [tensor, data] of feeds) tensor.set(data)
    run(runner, graph)
    for (const { p, k, v } of outs) {
      scatter(p, d, n, keys, k.floats())
      scatter(p, d, n, values, v.floats())
    }
  } finally {
    c.dispose()
  }
  return { keys, values }
}

function write(runner: Runner, d: number, n: number, list: readonly Part[], rows: RowData): void {
  if (!list.length) return
  const c = graphFor(list)
  try {
    const graph = new Graph(c)
    const feeds: [Tensor, Int32Array | Float32Array][] = []
    for (const p of list) {
      const m = p.cells.length
      const ids = c.tensor('i32', m, p.heads).asInput()
      const k = c.tensor('f32', d, m, p.heads).asInput()
      feeds.push([ids, cellIds(p)], [k, gather(p, d, n, rows.keys)])
      graph.expand(ops.setRows(c, headSlice(c, p.arena.keys(p.layer), p), k, ids))
      const data = gather(p, d, n, rows.values)
      if (p.arena.shape.valuesTransposed) {
        const elements = c.tensor('i32', d * m * p.heads).asInput()
        const v = c.tensor('f32', 1, d * m * p.heads).asInput()
        feeds.push([elements, elementIds(p)], [v, data])
        graph.expand(ops.setRows(c, elementRows(c, p), v, elements))
      } else {
        const v = c.tensor('f32', d, m, p.heads).asInput()
        feeds.push([v, data])
        graph.expand(ops.setRows(c, headSlice(c, p.arena.values(p.layer), p), v, ids))
      }
    }
    runner.allocate(graph)
    for (const [tensor, data] of feeds) tensor.set(data)
    run(runner, graph)
  } finally {
    c.dispose()
  }
}
