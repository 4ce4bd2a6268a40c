/**
 * Observations on their way out of a graph: keys in the order of their positions, without the holes and the padding between
 * the cells that attention reads.
 */
import { PAGE_CELLS } from '../../cache/arena.ts'
import type { ObservedLayer, Statistic } from '../../contract/observation.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { Load } from '../place.ts'
import type { ObservedTensors } from './build.ts'

/** The keys of one column among the cells of a load. */
interface KeyOrder {
  /** Cells that hold a key, by position ascending. */
  readonly cells: Int32Array
  readonly positions: Int32Array
  /** Whether cell i holds key i, the common case. */
  readonly inPlace: boolean
}

/** Reads the observations of one graph, into memory that is kept from step to step. */
export class ObservationReader {
  readonly #layers: readonly ObservedTensors[]
  /** Room for one tensor as it is, f32 [cells, H]. */
  readonly #raw: Float32Array
  readonly #rooms = new Map<Tensor, Float32Array>()

  constructor(layers: readonly ObservedTensors[]) {
    this.#layers = layers
    const all = layers.flatMap((l) => Object.values(l.statistics))
    this.#raw = new Float32Array(Math.max(0, ...all.map((t) => t.elements)))
    for (const t of all) this.#rooms.set(t, new Float32Array(t.elements))
  }

  /**
   * The layers of the item that stands at row `first`, in their order.
   * @param loads of that item in the step at hand: the graph may be from an earlier one
   */
  read(first: number, kvHeads: number, loads: readonly Load[]): ObservedLayer[] {
    const orders = loads.map((load) => load.columns.map((_, i) => keyOrder(load, i)))
    return this.#layers
      .filter((l) => l.item.first === first)
      .map(({ item, load, statistics }) => {
        const columns = orders[item.loads.indexOf(load)]!
        const byHead = Array.from({ length: kvHeads }, (_, h) => columns[columns.length === 1 ? 0 : h]!)
        const read = Object.entries(statistics).map(([name, t]) => [name, this.#ordered(t, byHead)] as const)
        return {
          keys: byHead.map((o) => o.cells.length),
          positions: columns.map((o) => o.positions),
          statistics: Object.fromEntries(read) as Partial<Record<Statistic, Float32Array>>,
        }
      })
  }

  /** f32 [n, H], n the most keys of a head. */
  #ordered(tensor: Tensor, byHead: readonly KeyOrder[]): Float32Array {
    const [cells, , H] = tensor.ne
    const group = H / byHead.length
    const n = Math.max(...byHead.map((o) => o.cells.length))
    const raw = tensor.get(this.#raw.subarray(0, cells * H))
    const out = this.#rooms.get(tensor)!.subarray(0, n * H)
    for (let h = 0; h < H; h++) {
      const order = byHead[Math.floor(h / group)]!
      const keys = order.cells.length
      const [from, to] = [h * cells, h * n]
      if (order.inPlace) out.set(raw.subarray(from, from + keys), to)
      else for (let j = 0; j < keys; j++) out[to + j] = raw[from + order.cells[j]!]!
      out.fill(0, h * n + keys, (h + 1) * n)
    }
    return out
  }
}

/** The keys of one column, where a load reads them. */
function keyOrder(load: Load, column: number): KeyOrder {
  const { byPosition, blocks, orderedPositions } = load.columns[column]!
  const slots = load.slots[column]!
  const cells = slots.every((block, slot) => block === slot || block < 0)
    ? byPosition
    : inSlots(byPosition, slots, blocks.length)
  return { cells, positions: orderedPositions, inPlace: cells.every((cell, i) => cell === i) }
}

/** Where the cells of a column lie in a load that reads its blocks in another order. */
function inSlots(cells: Int32Array, slots: Int32Array, blocks: number): Int32Array {
  const slotOf = new Int32Array(blocks)
  for (const [slot, block] of slots.entries()) if (block >= 0) slotOf[block] = slot
  return cells.map((cell) => slotOf[Math.floor(cell / PAGE_CELLS)]! * PAGE_CELLS + (cell % PAGE_CELLS))
}
