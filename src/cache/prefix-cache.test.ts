/** Stored prefixes over a small store, without a model. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import type { EngineEvent } from '../contract/events.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { PAGE_CELLS } from './arena.ts'
import { checkStore } from './check.ts'
import type { BlockRef } from './column.ts'
import type { CacheIdentity } from './identity.ts'
import { PrefixCache } from './prefix-cache.ts'
import { type KvSequence, KvStore } from './store.ts'

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

/** A sequence of `blocks` full blocks whose pages hold their numbers; published. */
function filled(store: KvStore, cache: PrefixCache, tokens: number[], hashes: string[]): KvSequence {
  const s = store.create(0)
  store.append(
    s,
    tokens.map((_, i) => i),
  )
  for (const [i, b] of s.columns[0]!.blocks.entries())
    store.arenas[b.arena]!.writePage(b.page, new Uint8Array(store.arenas[b.arena]!.pageBytes).fill(i + 1))
  cache.nameBlocks(cache.root('', ''), tokens, hashes)
  cache.publish(s, hashes, tokens, 0, hashes.length)
  return s
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
        assert.ok(store.arenas[0]!.readPage(b.page).every((byte) => byte === i + 1))
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
      assert.equal(store.usedBytes, 3 * store.arenas[0]!.pageBytes)
      checkStore(store, cache.check())
    }))
})
