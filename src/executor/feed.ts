/**
 * Sets a graph's inputs. All of them, every time: the allocator reuses their memory while a graph runs. An input that no
 * node reads (a mask of layers that are not run) has no memory and is passed over.
 */
import type { UniformCache } from '../cache/uniform.ts'
import type { WorkItem } from '../contract/work-item.ts'
import type { ModelConfig } from '../model/config.ts'
import type { StepGraph } from './graph.ts'

/** f16 bits of -infinity; 0 is 0. */
const MINUS_INFINITY = 0xfc00

export function feed(g: StepGraph, item: WorkItem, cache: UniformCache, config: ModelConfig): void {
  const cells = asInt32(item.cells)
  const positions = asInt32(item.positions)
  g.input.set(item.input.kind === 'tokens' ? asInt32(item.input.tokens) : item.input.rows)
  g.positions.set(positions)
  g.cells.set(cells)
  g.valueElements?.set(valueElements(cells, config, cache.capacity))
  if (g.mask.hasMemory) g.mask.set(causalMask(g.maskBits, cache.positions, positions, Number.POSITIVE_INFINITY))
  if (config.window && g.windowMask?.hasMemory)
    g.windowMask.set(causalMask(g.maskBits, cache.positions, positions, config.window.size))
  g.outputRows?.set(asInt32(item.outputs.logits))
}

function asInt32(values: readonly number[] | Int32Array): Int32Array {
  return values instanceof Int32Array ? values : Int32Array.from(values)
}

/** Element of each of a step's values [d, Hkv, T] in an arena [cells, d, Hkv]. */
function valueElements(cells: Int32Array, { headDim, kvHeads }: ModelConfig, capacity: number): Int32Array {
  const perRow = headDim * kvHeads
  const out = new Int32Array(perRow * cells.length)
  let at = 0
  for (const cell of cells) for (let i = 0; i < perRow; i++) out[at++] = i * capacity + cell
  return out
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
