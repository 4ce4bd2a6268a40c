/** Rows of one head change places: bytes move, numbers stay what they are. */
import { type Arena, PAGE_CELLS } from './arena.ts'

/**
 * @param pages whose blocks of this layer and head hold the rows, one behind the other
 * @param from `from[i]`: cell, counted over all of these blocks, of the row that comes to cell i; what is behind the last keeps some
 *   row's bytes
 */
export function permuteRows(
  arena: Arena,
  layer: number,
  head: number,
  pages: readonly number[],
  from: readonly number[],
): void {
  const blocks = pages.map((page) => arena.readBlock(layer, head, page))
  const { keyBytes, valueBytes, values, step, strips } = layoutOf(arena)
  for (const [b, page] of pages.entries()) {
    const out = blocks[b]!.slice()
    for (let k = 0; k < PAGE_CELLS; k++) {
      const cell = from[b * PAGE_CELLS + k]
      if (cell === undefined) continue
      const [source, row] = [blocks[Math.floor(cell / PAGE_CELLS)]!, cell % PAGE_CELLS]
      out.set(source.subarray(row * keyBytes, (row + 1) * keyBytes), k * keyBytes)
      for (let strip = 0; strip < strips; strip++) {
        const at = values + strip * step
        out.set(source.subarray(at + row * valueBytes, at + (row + 1) * valueBytes), at + k * valueBytes)
      }
    }
    arena.writeBlock(layer, head, page, out)
  }
}

/** Where a row's bytes lie in a block: keys row by row, then values row by row, or, transposed, a strip of 32 cells per channel. */
function layoutOf(arena: Arena): {
  readonly keyBytes: number
  readonly valueBytes: number
  readonly values: number
  readonly step: number
  readonly strips: number
} {
  const { headDim, valuesTransposed } = arena.shape
  const keyBytes = arena.keys(0).nb[1]
  const values = PAGE_CELLS * keyBytes
  const element = arena.values(0).nb[0]
  return valuesTransposed
    ? { keyBytes, valueBytes: element, values, step: PAGE_CELLS * element, strips: headDim }
    : { keyBytes, valueBytes: arena.values(0).nb[1], values, step: 0, strips: 1 }
}
