/** The store as a picture: one pass over the tables of what runs, one over the pages. */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { PrefixCache } from '../cache/prefix-cache.ts'
import type { KvSequence, KvStore } from '../cache/store.ts'
import type { ArenaMap, CacheMap } from './api.ts'
import type { Branch } from './branch.ts'

/** @param running oldest admission first */
export function cacheMap(store: KvStore, prefixes: PrefixCache, running: readonly Branch[]): CacheMap {
  return {
    pageTokens: PAGE_CELLS,
    arenas: store.arenas.map((_, i) => arenaMap(store, i, running)),
    tiers: prefixes.tiers,
  }
}

function arenaMap(store: KvStore, arena: number, running: readonly Branch[]): ArenaMap {
  const { pages, pageBytes, shape } = store.arenas[arena]!
  const pool = store.pools[arena]!
  const holders = new Uint32Array(pages)
  const owners = new Array<number>(pages).fill(0)
  for (const { id, sequence } of running)
    for (const page of sequence ? pagesOf(sequence, arena) : []) {
      holders[page]!++
      owners[page] ||= id
    }
  const state = (page: number): string => {
    if (pool.isFree(page)) return '.'
    if (holders[page] === 0) return 'p'
    return holders[page] === 1 ? 'o' : 's'
  }
  return {
    ...{ keyType: shape.keyType, valueType: shape.valueType, pageBytes, pages },
    states: Array.from(holders, (_, page) => state(page)).join(''),
    owners,
    agesMs: Array.from(holders, (_, page) => Math.round(pool.age(page))),
  }
}

/** Each once: the columns of a ragged sequence hold blocks of the same pages. */
function pagesOf(sequence: KvSequence, arena: number): Set<number> {
  const pages = new Set<number>()
  for (const column of sequence.columns) for (const b of column.blocks) if (b.arena === arena) pages.add(b.page)
  return pages
}
