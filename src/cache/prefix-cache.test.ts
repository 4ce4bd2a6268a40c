/** Stored prefixes over a small store, without a model. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import type { EngineEvent } from '../contract/events.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { Arena, type CacheType, PAGE_CELLS } from './arena.ts'
import { checkStore } from './check.ts'
import type { BlockRef } from './column.ts'
import type { CacheIdentity } from './identity.ts'
import { PrefixCache } from './prefix-cache.ts'
import type { KvSequence } from './sequence.ts'
import { KvStore } from './store.ts'

let natives: Record<string, number>
before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

const identity: CacheIdentity = {
  ...{ model: 'm', tokenizer: 't', adapters: [], rope: {}, tenant: '', salt: '' },
  kv: { keys: 'f16', values: 'f16', layout: 'test' },
  policy: { name: 'full', params: {} },
}

async function withCache(
  pages: number,
  run: (store: KvStore, cache: PrefixCache, events: EngineEvent[]) => void | Promise<void>,
): Promise<void> {
  const arena = { keyType: 'f16', valueType: 'f16', valuesTransposed: true, pages } as const
  using store = new KvStore({ layers: 2, headDim: 32, kvHeads: 2, arenas: [arena] }, cpuDevice())
  const events: EngineEvent[] = []
  const options = { hostCacheBytes: 0, diskCache: null, diskCacheBytes: 0, emit: (e: EngineEvent) => events.push(e) }
  const cache = await PrefixCache.open(store, identity, options)
  await run(store, cache, events)
  await cache.close()
}

/** An arena of another type, which borrows its pages. */
function borrow(store: KvStore, type: CacheType): number {
  const { layers, headDim, kvHeads } = store.dims
  const format = { keyType: type, valueType: type, valuesTransposed: false, pages: 256 }
  return store.borrower(type, () => new Arena({ layers, headDim, kvHeads, ...format }, cpuDevice()))
}

/** A sequence of `blocks` full blocks whose pages hold their numbers; published. */
function filled(store: KvStore, cache: PrefixCache, tokens: number[], hashes: string[], arena = 0): KvSequence {
  const s = store.create(0, arena)
  store.append(
    s,
    tokens.map((_, i) => i),
  )
  for (const [i, b] of s.columns[0]!.blocks.entries())
    store.rowArena(b.arena).writePage(b.page, new Uint8Array(store.rowArena(b.arena).pageBytes).fill(i + 1))
  cache.nameBlocks(cache.root('', '', arena), tokens, hashes)
  cache.publish(s, hashes, tokens, 0, hashes.length)
  return s
}

function end(store: KvStore, cache: PrefixCache, s: KvSequence): void {
  cache.release(s)
  store.free(s)
}

describe('stored blocks', () => {
  it('that lie in many pieces are moved together when they are used again, with their bytes', () =>
    withCache(64, (store, cache) => {
      // Others hold every other page.
      const between: BlockRef[] = []
      for (let p = 1; p < 32; p += 2) between.push({ arena: 0, page: p as BlockRef['page'] })
      for (const b of between) store.holdPage(b)
      const hashes: string[] = []
      const s = filled(
        store,
        cache,
        Array.from({ length: 8 * PAGE_CELLS }, (_, i) => i),
        hashes,
      )
      const pieces = s.columns[0]!.runs.length
      assert.ok(pieces > 4, `${pieces} pieces`)
      cache.release(s)
      store.free(s)
      const again = store.create(0)
      cache.adopt(again, hashes, 8)
      assert.equal(again.columns[0]!.runs.length, 1)
      for (const [i, b] of again.columns[0]!.blocks.entries())
        assert.ok(store.home.readPage(b.page).every((byte) => byte === i + 1))
      checkStore(store, [...between, ...cache.check()])
      // While it is used they stay where they are.
      const third = store.create(0)
      cache.adopt(third, hashes, 8)
      assert.deepEqual(third.columns[0]!.blocks, again.columns[0]!.blocks)
      for (const x of [again, third]) {
        cache.release(x)
        store.free(x)
      }
      checkStore(store, [...between, ...cache.check()])
    }))

  it('are evicted leaf by leaf, never while they are used, and each eviction is an event', () =>
    withCache(16, (store, cache, events) => {
      const hashes: string[] = []
      const s = filled(
        store,
        cache,
        Array.from({ length: 6 * PAGE_CELLS }, (_, i) => i),
        hashes,
      )
      assert.equal(cache.evict(10, 'admission'), 0)
      cache.release(s)
      store.free(s)
      assert.equal(cache.evictablePages, 6)
      assert.equal(cache.evict(2, 'admission'), 2)
      assert.equal(cache.longest(hashes), 4)
      const removed = events.filter((e) => e.kind === 'BlockRemoved').flatMap((e) => e.block_hashes)
      assert.deepEqual(removed, [hashes[5], hashes[4]])
      assert.equal(cache.evict(99, 'admission'), 4)
      assert.equal(store.usedBytes, 0)
    }))

  it('that are computed twice are stored once', () =>
    withCache(16, (store, cache) => {
      const tokens = Array.from({ length: 3 * PAGE_CELLS }, (_, i) => i)
      const [one, two] = [[], []] as [string[], string[]]
      const a = filled(store, cache, tokens, one)
      const b = filled(store, cache, tokens, two)
      assert.deepEqual(one, two)
      assert.equal(cache.size, 3)
      for (const s of [a, b]) {
        cache.release(s)
        store.free(s)
      }
      assert.equal(store.usedBytes, 3 * store.home.pageBytes)
      checkStore(store, cache.check())
    }))
})

describe('blocks of other types', () => {
  const tokens = (blocks: number) => Array.from({ length: blocks * PAGE_CELLS }, (_, i) => i)

  it('have names of their own, and lie and are moved in an arena of their own', () =>
    withCache(64, (store, cache) => {
      const q8 = borrow(store, 'q8_0')
      const [one, two]: [string[], string[]] = [[], []]
      const f16 = filled(store, cache, tokens(8), one)
      // Others hold every other page.
      const between: BlockRef[] = []
      for (let p = 1; p < 32; p += 2) between.push({ arena: q8, page: p as BlockRef['page'] })
      const all = Array.from({ length: 32 }, () => store.takePage(q8, null)!)
      for (const b of all) if (b.page % 2 === 0) store.releasePage(b)
      const s = filled(store, cache, tokens(8), two, q8)
      assert.ok(two.every((hash) => !one.includes(hash)))
      assert.equal(cache.root('', ''), cache.root('', '', 0))
      assert.equal(cache.size, 16)
      end(store, cache, s)
      const again = store.create(0, q8)
      cache.adopt(again, two, 8)
      const [run, ...rest] = again.columns[0]!.runs
      assert.deepEqual([run!.arena, rest], [q8, []])
      for (const [i, b] of again.columns[0]!.blocks.entries())
        assert.ok(
          store
            .rowArena(q8)
            .readPage(b.page)
            .every((byte) => byte === i + 1),
        )
      checkStore(store, [...between, ...cache.check()])
      for (const x of [f16, again]) end(store, cache, x)
    }))

  it('are given up until there is room for what is needed, however small they are', () =>
    withCache(16, (store, cache, events) => {
      const q4 = borrow(store, 'q4_0')
      const hashes: string[] = []
      // Sixteen pages of q4_0 are four and a half of f16.
      const s = filled(store, cache, tokens(16), hashes, q4)
      store.reclaim()
      assert.equal(store.lentPages.length, 5)
      assert.equal(cache.evictablePages, 0)
      end(store, cache, s)
      assert.equal(cache.evictablePages, 5)
      assert.equal(cache.evictableBytes, 16 * store.arenas[q4]!.pageBytes)
      const other = store.create(0)
      store.append(other, tokens(11))
      assert.equal(cache.makeRoom(0, 1, 'growth'), 2, 'fourteen of them are four')
      assert.equal(store.pools[0]!.freePages, 1)
      assert.equal(cache.longest(hashes), 14)
      const evicted = events.findLast((e) => e.kind === 'pages-evict')!
      assert.equal(evicted.bytes, 2 * store.arenas[q4]!.pageBytes)
      assert.equal(cache.makeRoom(0, 1, 'growth'), 0)
      checkStore(store, cache.check())
      // More than there is: all go, and it ends.
      assert.equal(cache.makeRoom(0, 99, 'growth'), 14)
      assert.equal(cache.evictablePages, 0)
      assert.deepEqual(store.lentPages, [])
      end(store, cache, other)
    }))

  it('make room for each other, the least worth keeping first', () =>
    withCache(16, (store, cache) => {
      const f32 = borrow(store, 'f32')
      const [one, two]: [string[], string[]] = [[], []]
      end(store, cache, filled(store, cache, tokens(8), one))
      end(store, cache, filled(store, cache, tokens(4), two, f32))
      assert.equal(store.pools[0]!.freePages, 0)
      assert.equal(cache.evictablePages, 16)
      // Two pages of f32 are four of f16: the older ones.
      assert.equal(cache.makeRoom(f32, 2, 'growth'), 4)
      assert.deepEqual([cache.longest(one), cache.longest(two)], [4, 4])
      assert.equal(cache.makeRoom(0, 10, 'growth'), 4 + 1)
      assert.deepEqual([cache.longest(one), cache.longest(two)], [0, 3])
      checkStore(store, cache.check())
    }))
})
