/** The store as a picture: one pass over the tables of what runs, one over the pages. */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { CodeFormat } from '../cache/code-arena.ts'
import type { PagePool } from '../cache/pages.ts'
import type { PrefixCache } from '../cache/prefix-cache.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { KvStore } from '../cache/store.ts'
import type { ArenaMap, CacheMap } from './api.ts'
import type { Branch } from './branch.ts'

/** @param running oldest admission first */
export function cacheMap(store: KvStore, prefixes: PrefixCache, running: readonly Branch[]): CacheMap {
  return {
    pageTokens: PAGE_CELLS,
    // Those without room of their own are there while somebody uses them.
    arenas: [...store.arenas.keys()]
      .filter((i) => i === 0 || store.pools[i]!.usedBlocks > 0)
      .map((i) => arenaMap(store, i, running)),
    tiers: prefixes.tiers,
  }
}

function arenaMap(store: KvStore, arena: number, running: readonly Branch[]): ArenaMap {
  const it = store.arenas[arena]!
  const { pageBytes } = it
  const pages = arena === 0 ? it.pages : lastUsed(store.pools[arena]!) + 1
  const pool = store.pools[arena]!
  const holders = new Uint32Array(pages)
  const owners = new Array<number>(pages).fill(0)
  for (const { id, sequence } of running)
    for (const page of sequence ? pagesOf(sequence, arena) : []) {
      holders[page]!++
      owners[page] ||= id
    }
  const lent = new Set<number>(arena === 0 ? store.lentPages : [])
  const state = (page: number): string => {
    if (pool.isFree(page)) return '.'
    if (lent.has(page)) return 'l'
    if (holders[page] === 0) return 'p'
    return holders[page] === 1 ? 'o' : 's'
  }
  return {
    ...(it.kind === 'rows' ? typesOf(it.shape) : typesOf(codeNames(it.format))),
    ...{ pageBytes, pages },
    states: Array.from(holders, (_, page) => state(page)).join(''),
    owners,
    agesMs: Array.from(holders, (_, page) => Math.round(pool.age(page))),
  }
}

function typesOf({
  keyType,
  valueType,
}: Pick<ArenaMap, 'keyType' | 'valueType'>): Pick<ArenaMap, 'keyType' | 'valueType'> {
  return { keyType, valueType }
}

function codeNames({ keys, values }: CodeFormat): Pick<ArenaMap, 'keyType' | 'valueType'> {
  return { keyType: `${keys.bits} bits`, valueType: `${values.bits} bits` }
}

function lastUsed(pool: PagePool): number {
  let page = pool.pages - 1
  while (page > 0 && pool.isFree(page)) page--
  return page
}

/** Each once: the columns of a ragged sequence hold blocks of the same pages. */
function pagesOf(sequence: KvSequence, arena: number): Set<number> {
  const pages = new Set<number>()
  for (const column of sequence.columns) for (const b of column.blocks) if (b.arena === arena) pages.add(b.page)
  return pages
}
