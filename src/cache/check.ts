/**
 * The store's invariants, worked out anew from what sequences and outsiders hold, against what the pools have counted. Tests
 * call it after every operation, the engine (in its debug mode) when idle. Takes time in the number of cells that are held.
 */
import { PAGE_CELLS } from './arena.ts'
import type { BlockRef, Column } from './column.ts'
import type { PagePool } from './pages.ts'
import type { KvSequence } from './sequence.ts'
import type { KvStore } from './store.ts'

/** Holders that a pool should have counted. */
interface Expected {
  readonly whole: Uint32Array
  /** Of single blocks, by page, [columns]. */
  readonly blocks: Map<number, Uint32Array>
  readonly claims: Uint32Array
}

/**
 * @param externalHolds a page for each hold that no sequence has: of stored prefixes, of pages on their way. May repeat
 * @throws Error that names the first difference
 */
export function checkStore(store: KvStore, externalHolds: Iterable<BlockRef>): void {
  const expected = store.pools.map(
    (p): Expected => ({
      whole: new Uint32Array(p.pages),
      blocks: new Map(),
      claims: new Uint32Array(p.pages),
    }),
  )
  for (const [id, s] of store.sequences) {
    if (s.id !== id) fail(`sequence ${s.id} is filed as ${id}`)
    countSequence(store, s, expected)
  }
  for (const page of store.lentPages) expected[0]!.whole[page]!++
  for (const b of externalHolds) expectedAt(store, expected, b, 'an external hold').whole[b.page]!++
  let usedBytes = -store.lentPages.length * store.home.pageBytes
  for (const [i, pool] of store.pools.entries())
    usedBytes += checkPool(`arena ${i}`, pool, expected[i]!) * store.arenas[i]!.blockBytes
  for (const a of store.arenas) if (a.kind === 'codes') usedBytes += a.extraBytes
  if (store.usedBytes !== usedBytes) fail(`${store.usedBytes} used bytes, the blocks held have ${usedBytes}`)
}

function fail(difference: string): never {
  throw new Error(`KV store: ${difference}`)
}

function expectedAt(store: KvStore, expected: readonly Expected[], b: BlockRef, holder: string): Expected {
  const pages = store.pools[b.arena]?.pages
  if (pages === undefined) fail(`${holder} names arena ${b.arena} of ${store.pools.length}`)
  if (!(Number.isInteger(b.page) && b.page >= 0 && b.page < pages))
    fail(`${holder} names page ${b.page} of ${pages} in arena ${b.arena}`)
  return expected[b.arena]!
}

function countSequence(store: KvStore, s: KvSequence, expected: readonly Expected[]): void {
  const name = `sequence ${s.id}`
  const { layers, kvHeads } = store.dims
  const columns = s.layout === 'uniform' ? 1 : layers * kvHeads
  if (s.columns.length !== columns) fail(`${name} is ${s.layout} and has ${s.columns.length} columns, not ${columns}`)
  if (!store.pools[s.arena]) fail(`${name} grows in arena ${s.arena} of ${store.pools.length}`)
  for (const [i, c] of s.columns.entries()) {
    checkColumn(`${name}, column ${i}`, c)
    for (const b of c.blocks) {
      const e = expectedAt(store, expected, b, `${name}, column ${i}`)
      if (s.layout === 'uniform') e.whole[b.page]!++
      else {
        let blocks = e.blocks.get(b.page)
        if (!blocks) e.blocks.set(b.page, (blocks = new Uint32Array(columns)))
        const layer = b.layer ?? Math.floor(i / kvHeads)
        blocks[layer * kvHeads + (i % kvHeads)]!++
      }
    }
  }
  if (!s.extent) return
  const { from, to } = s.extent
  const pool = store.pools[s.extentArena]
  if (s.layout === 'ragged') fail(`${name} is ragged and has an extent`)
  if (!pool || !(from >= 0 && from < to && to <= pool.pages))
    fail(`${name}: extent [${from}, ${to}) of ${pool?.pages} pages in arena ${s.extentArena}`)
  for (let p = from; p < to; p++) expected[s.extentArena]!.claims[p]!++
}

/** Counts, holes and runs of a column, whoever holds its blocks. */
export function checkColumn(name: string, c: Column): void {
  if (!(c.end >= 0 && c.end <= c.cells)) fail(`${name}: end ${c.end} of ${c.cells} cells`)
  // All of the memory, that of blocks to come too: they must find it empty.
  const positions = new Int32Array(c.positions.buffer)
  let rows = 0
  for (let cell = 0; cell < positions.length; cell++) {
    if (positions[cell]! < -1) fail(`${name}: cell ${cell} has position ${positions[cell]}`)
    if (positions[cell]! < 0) continue
    if (cell >= c.end) fail(`${name}: cell ${cell} holds position ${positions[cell]}, behind end ${c.end}`)
    rows++
  }
  if (rows !== c.rows) fail(`${name}: ${c.rows} rows, its cells hold ${rows}`)
  const order = [...c.byPosition]
  if (order.length !== rows) fail(`${name}: an order of ${order.length} rows, it has ${rows}`)
  for (const [i, cell] of order.entries())
    if (positions[cell]! < 0 || (i > 0 && positions[cell]! < positions[order[i - 1]!]!))
      fail(`${name}: cell ${cell} stands ${i}th in the order of positions`)
  let block = 0
  for (const [i, run] of c.runs.entries())
    for (let cell = run.from; cell < run.to; cell += PAGE_CELLS, block++) {
      const b = c.blocks[block]
      if (!b || b.arena !== run.arena || b.page * PAGE_CELLS !== cell)
        fail(`${name}: run ${i} has cell ${cell} of arena ${run.arena} where block ${block} is ${show(b)}`)
    }
  if (block !== c.blocks.length) fail(`${name}: runs of ${block} blocks, it has ${c.blocks.length}`)
}

function show(b: BlockRef | undefined): string {
  return b ? `page ${b.page} of arena ${b.arena}` : 'none'
}

/** The number of blocks in use. */
function checkPool(name: string, pool: PagePool, e: Expected): number {
  let used = 0
  let free = 0
  for (let p = 0; p < pool.pages; p++) {
    const page = `${name}, page ${p}`
    const whole = e.whole[p]!
    if (pool.pageHolders(p) !== whole) fail(`${page}: ${pool.pageHolders(p)} holders counted, ${whole} hold it`)
    const counted = pool.blockHolders(p)
    const blocks = e.blocks.get(p)
    let held = 0
    if (counted || blocks)
      for (let c = 0; c < pool.columns; c++) {
        const [has, should] = [counted?.[c] ?? 0, blocks?.[c] ?? 0]
        if (has !== should) fail(`${page}, column ${c}: ${has} holders of the block counted, ${should} hold it`)
        if (should > 0) held++
      }
    if (counted && held === 0) fail(`${page}: counts single blocks though nobody holds one`)
    if (whole > 0) held = pool.columns
    used += held
    if (held === 0) free++
    const fragmented = held > 0 && held < pool.columns
    if (pool.isFragmented(p) !== fragmented)
      fail(
        `${page}: ${held} of ${pool.columns} blocks are held, and it is ${fragmented ? 'not ' : ''}listed as in pieces`,
      )
    if (pool.claims(p) !== e.claims[p]) fail(`${page}: in ${pool.claims(p)} extents counted, ${e.claims[p]} cover it`)
  }
  if (pool.freePages !== free) fail(`${name}: ${pool.freePages} free pages counted, ${free} are free`)
  if (pool.usedBlocks !== used) fail(`${name}: ${pool.usedBlocks} used blocks counted, ${used} are held`)
  return used
}
