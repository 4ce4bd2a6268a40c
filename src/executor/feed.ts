/**
 * Sets a graph's inputs. All of them, every time: the allocator reuses their memory while a graph runs. An input that no
 * node reads (a mask of layers whose attention serves nobody) has no memory and is passed over.
 */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { CodeArena } from '../cache/code-arena.ts'
import { hadamardMatrix } from '../cache/rotation.ts'
import type { KvStore } from '../cache/store.ts'
import { fromFloats } from '../ggml/numbers.ts'
import type { Tensor } from '../ggml/tensor.ts'
import type { ModelConfig } from '../model/config.ts'
import type { GatherInput, MaskInput, RowScaleInput, ShiftInput } from './attention.ts'
import { feedCoded } from './coded.ts'
import type { OutputPlaces, StepGraph } from './graph.ts'
import {
  type Load,
  type PlacedItem,
  type PlacedStep,
  partCells,
  slotMarks,
  slotPositions,
  slotShifts,
} from './place.ts'

/** f16 bits of -infinity; 0 is 0. */
const MINUS_INFINITY = 0xfc00

export function feed(g: StepGraph, step: PlacedStep, store: KvStore, config: ModelConfig): void {
  // The graph may be from an earlier step of the same key: its items stand at the same places, but are not the same.
  const now = (p: PlacedItem) => step.items.find((q) => q.first === p.first)!
  const all = step.rows + step.padding
  const tokens = new Int32Array(all)
  const positions = new Int32Array(all)
  const cells = new Int32Array(all)
  const elements: number[] | Int32Array = g.elements ? new Int32Array(g.elements.ne[0]) : []
  let element = 0
  for (const p of step.items) {
    if (p.item.input.kind === 'tokens') tokens.set(p.item.input.tokens, p.first)
    positions.set(p.item.positions, p.first)
    if (p.ragged || !p.stored) continue
    const column = p.sequence.columns[0]!
    for (let i = 0; i < p.rows; i++) cells[p.first + i] = column.physical(p.cells[0]![i]!)
    const arena = store.rowArena(p.arena)
    if (p.pieces || !arena.shape.valuesTransposed) continue
    const perRow = config.headDim * config.kvHeads
    for (let i = 0; i < p.rows; i++)
      for (let e = 0; e < perRow; e++) elements[element++] = e * arena.cells + cells[p.first + i]!
  }
  set(g.tokens, tokens)
  set(g.positions, positions)
  set(g.cells, cells)
  if (g.elements) set(g.elements, elements as Int32Array)
  for (const { item, tensor } of g.rowInputs) {
    const { input } = now(item).item
    if (input.kind !== 'tokens') set(tensor, input.rows)
  }
  for (const r of g.raggedStores) feedRaggedStore(r, now(r.item), store, config)
  for (const gather of g.gathers) feedGather(gather, now(gather.item), store, config)
  for (const coded of g.coded) {
    const load = sameLoad(coded.item, coded.load, now(coded.item))
    const arena = store.arenas[load.parts[coded.part]!.arena] as CodeArena
    feedCoded(coded, load, arena, firstCell(load, coded.part) / PAGE_CELLS)
  }
  for (const s of g.rowScales) feedRowScales(s, now(s.item), config)
  for (const shift of g.shifts) set(shift.tensor, shiftsOf(shift, now(shift.item), config))
  for (const mask of g.masks) if (mask.tensor.hasMemory) mask.tensor.set(maskBits(mask, now(mask.item), config))
  for (const [size, matrix] of g.rotations) set(matrix, matrixOf(size))
  if (g.ones) set(g.ones, new Float32Array(g.ones.elements).fill(1))
  if (g.outputRows) set(g.outputRows, outputRows(step, config, g.outputs))
}

const matrices = new Map<number, Float32Array>()

function matrixOf(size: number): Float32Array {
  const known = matrices.get(size) ?? hadamardMatrix(size)
  matrices.set(size, known)
  return known
}

function set(tensor: Tensor, data: Int32Array | Float32Array): void {
  if (tensor.hasMemory) tensor.set(data)
}

/** Rows of the last layer's table that go on to the outputs, in the order of the items; filled up with row 0. */
function outputRows(step: PlacedStep, config: ModelConfig, places: OutputPlaces): Int32Array {
  const out = new Int32Array(places.logits + places.normed)
  let logits = 0
  let normed = places.logits
  let first = 0
  for (const p of step.items) {
    if (p.item.layers.to !== config.layers) continue
    for (const row of p.item.outputs.logits) out[logits++] = first + row
    for (const row of p.item.outputs.normed ?? []) out[normed++] = first + row
    first += p.rows
  }
  return out
}

function feedRaggedStore(
  { layer, rows, elements }: StepGraph['raggedStores'][number],
  p: PlacedItem,
  store: KvStore,
  { headDim: d, kvHeads }: ModelConfig,
): void {
  const ids = new Int32Array(p.rows * kvHeads)
  const at = elements ? new Int32Array(d * kvHeads * p.rows) : null
  const { cells } = store.rowArena(p.arena)
  for (let h = 0; h < kvHeads; h++) {
    const c = layer * kvHeads + h
    const column = p.sequence.columns[c]!
    for (let t = 0; t < p.rows; t++) {
      const cell = column.physical(p.cells[c]![t]!)
      ids[h * p.rows + t] = cell
      if (at) for (let i = 0; i < d; i++) at[(t * kvHeads + h) * d + i] = (h * d + i) * cells + cell
    }
  }
  set(rows, ids)
  if (at) set(elements!, at)
}

/** The load of the step at hand that takes the place of a graph's. */
function sameLoad(graphItem: PlacedItem, load: Load, p: PlacedItem): Load {
  return p.loads[graphItem.loads.indexOf(load)]!
}

function feedGather(g: GatherInput, p: PlacedItem, store: KvStore, { headDim: d, kvHeads }: ModelConfig): void {
  const load = sameLoad(g.item, g.load, p)
  const part = load.parts[g.part]!
  const cells = part.kind === 'gather' ? part.cells : 0
  const firstSlot = firstCell(load, g.part) / PAGE_CELLS
  const arenaPages = store.rowArena(part.arena).pages
  const n = cells / PAGE_CELLS
  const rows = new Int32Array(cells * kvHeads)
  const pieces = g.pieces ? new Int32Array(n * d * kvHeads) : null
  for (let h = 0; h < kvHeads; h++) {
    const i = load.columns.length === 1 ? 0 : h
    const column = load.columns[i]!
    for (let s = 0; s < n; s++) {
      const block = load.slots[i]![firstSlot + s]!
      // Padding reads any page; the mask hides it.
      const page = block < 0 ? 0 : column.blocks[block]!.page
      for (let k = 0; k < PAGE_CELLS; k++) rows[h * cells + s * PAGE_CELLS + k] = page * PAGE_CELLS + k
      if (pieces) for (let e = 0; e < d; e++) pieces[(h * d + e) * n + s] = (h * d + e) * arenaPages + page
    }
  }
  set(g.rows, rows)
  if (pieces) set(g.pieces!, pieces)
}

/** Where a part begins among the cells of its load. */
function firstCell(load: Load, part: number): number {
  return load.parts.slice(0, part).reduce((sum, x) => sum + partCells(x), 0)
}

function feedRowScales(s: RowScaleInput, p: PlacedItem, { kvHeads }: ModelConfig): void {
  const load = sameLoad(s.item, s.load, p)
  const from = firstCell(load, s.part)
  const n = partCells(load.parts[s.part]!)
  for (const [tensor, mark] of [
    [s.keys, 'keyScale'],
    [s.values, 'valueScale'],
  ] as const) {
    const out = new Float32Array(n * kvHeads).fill(1)
    for (let h = 0; h < kvHeads; h++) {
      const marks = slotMarks(load, h, mark)
      if (marks) out.set(marks.subarray(from, from + n), h * n)
    }
    set(tensor, out)
  }
}

/** By how much each key of a part moves, i32 [n * Hkv]. */
function shiftsOf(s: ShiftInput, p: PlacedItem, { kvHeads }: ModelConfig): Int32Array {
  const load = sameLoad(s.item, s.load, p)
  const n = s.tensor.ne[0] / kvHeads
  const from = firstCell(load, s.part)
  const out = new Int32Array(n * kvHeads)
  for (let h = 0; h < kvHeads; h++) {
    if (h === 0 || load.columns.length > 1) out.set(slotShifts(load, h).subarray(from, from + n), h * n)
    else out.copyWithin(h * n, 0, n)
  }
  return out
}

function maskBits(m: MaskInput, p: PlacedItem, config: ModelConfig): Uint16Array {
  const load = sameLoad(m.item, m.load, p)
  const window = m.window && config.window ? config.window.size : Number.POSITIVE_INFINITY
  const rows = p.item.positions instanceof Int32Array ? p.item.positions : Int32Array.from(p.item.positions)
  const fill = (bits: Uint16Array, column: number) => {
    const places = slotPositions(load, column)
    if (p.shifted) for (const [cell, by] of slotShifts(load, column).entries()) places[cell]! += by
    addMasses(causalMask(bits, places, rows, window), slotMarks(load, column, 'mass'), rows.length)
  }
  if (!p.ragged) {
    fill(m.bits, 0)
    return m.bits
  }
  const perHead = load.cells * p.rows
  const group = config.heads / config.kvHeads
  for (let h = 0; h < config.kvHeads; h++) {
    const first = m.bits.subarray(h * group * perHead, (h * group + 1) * perHead)
    fill(first, h)
    for (let g = 1; g < group; g++) m.bits.set(first, (h * group + g) * perHead)
  }
  return m.bits
}

/** A row that stands for m rows counts as many: ln m joins its scores where it is seen. `mask` f16 [n, T]. */
function addMasses(mask: Uint16Array, masses: Float32Array | null, rows: number): void {
  if (!masses) return
  const n = masses.length
  const logs = new Uint16Array(fromFloats('f16', masses.map(Math.log), n).buffer)
  for (let cell = 0; cell < n; cell++)
    if (masses[cell] !== 1)
      for (let t = 0; t < rows; t++) if (mask[t * n + cell] === 0) mask[t * n + cell] = logs[cell]!
}

/** Fills `mask`, f16 [n, T]: a row sees the cells whose position is its own or one of the `window - 1` before. */
export function causalMask(
  mask: Uint16Array,
  cellPositions: Int32Array,
  rows: Int32Array,
  window: number,
): Uint16Array {
  const n = mask.length / rows.length
  mask.fill(MINUS_INFINITY)
  const ordered = orderedCells(cellPositions, n)
  for (let t = 0; t < rows.length; t++) {
    const p = rows[t]!
    const oldest = Math.max(0, p - window + 1)
    if (ordered) {
      // Cell i holds position i, the common case: one fill instead of n comparisons.
      mask.fill(0, t * n + oldest, t * n + Math.min(p + 1, ordered))
      continue
    }
    for (let i = 0; i < n; i++) {
      const q = cellPositions[i]!
      if (q >= oldest && q <= p) mask[t * n + i] = 0
    }
  }
  return mask
}

/** The number of used cells among the first n when cell i holds position i for all of them, else 0. */
function orderedCells(positions: Int32Array, n: number): number {
  let i = 0
  while (i < n && positions[i] === i) i++
  const used = i
  while (i < n && positions[i] === -1) i++
  return i === n ? used : 0
}
