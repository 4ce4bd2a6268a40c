/** What a sequence costs: the memory that it holds, and that of it which would be free without it. Only counting. */
import type { Range } from '../contract/units.ts'
import { PAGE_CELLS } from './arena.ts'
import { extrasBytes } from './codes.ts'
import type { KvMemory } from './memory.ts'
import type { KvSequence } from './sequence.ts'
import { blocksWritten, columnsOf, isShared, isWritable, placeOf } from './tables.ts'

/** Of a block that two layers share: lengths of 32 keys and 32 values, f16. */
const SCALE_BYTES = PAGE_CELLS * 2 * 2

/**
 * Bytes of the blocks that its rows lie in, those that it shares with other sequences too, and of all that belongs to them. What
 * several of its own rows or layers share counts once.
 */
export function heldBytes(memory: KvMemory, s: KvSequence): number {
  const { layers, kvHeads } = memory.dims
  const perBlock = s.layout === 'uniform' ? layers * kvHeads : 1
  let bytes = 0
  const shared = new Set<object>()
  const once = (list: Uint16Array | null) => {
    if (list && !shared.has(list)) bytes += list.byteLength
    if (list) shared.add(list)
  }
  for (const [i, c] of s.columns.entries())
    for (let k = 0; k * PAGE_CELLS < c.end; k++) {
      const b = c.blocks[k]!
      const arena = memory.arenas[b.arena]!
      // Two layers share a block: the upper one's. Each has lengths of its own, f16, of keys and values.
      if (b.layer !== undefined) bytes += SCALE_BYTES
      if (b.layer === undefined || b.layer === Math.floor(i / kvHeads)) bytes += perBlock * arena.blockBytes
      if (arena.kind === 'rows') continue
      const { layer, head } = placeOf(memory, i, b)
      const extras = arena.extras(layer, head, b.page)
      if (!extras) continue
      bytes += extrasBytes(extras.keys) + extrasBytes(extras.values)
      for (const e of [extras.keys, extras.values]) {
        once(e.channelScale)
        once(e.channelBase)
        once(e.lowRank?.b ?? null)
      }
    }
  return bytes
}

/** Pages of the first arena's size that nobody else holds: what freeing a sequence would free. */
export function ownPages(memory: KvMemory, s: KvSequence): number {
  // What other arenas hold is lent by the first.
  let bytes = 0
  for (const [i, c] of s.columns.entries())
    for (const b of c.blocks)
      if (!isShared(memory, s, i, b)) {
        const { pageBytes, blockBytes } = memory.arenas[b.arena]!
        bytes += s.layout === 'uniform' ? pageBytes : blockBytes
      }
  return Math.floor(bytes / memory.home.pageBytes)
}

/** Pages (or, ragged, pages' worth of blocks) that `rows` more rows of a sequence need: never too few. */
export function pagesNeeded(memory: KvMemory, s: KvSequence, rows: number, layers?: Range): number {
  // Blocks of one column lie in as many pages; other columns have theirs in the same ones.
  let most = 0
  for (const i of columnsOf(memory, s, layers)) {
    const c = s.columns[i]!
    const { first, last } = blocksWritten(memory, s, c, rows)
    let blocks = 0
    for (let b = first; b < last; b++) if (!isWritable(memory, s, i, c.blocks[b])) blocks++
    most = Math.max(most, blocks)
  }
  return most
}
