/** The suite that every tier passes, and the tests of what tiers share. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { blockHashes } from '../identity.ts'
import { blockFileBytes, DiskTier } from './disk.ts'
import { HostTier } from './host.ts'
import { Lru, RateMeter, type Tier, type TierBlock } from './tier.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-tier-'))
after(() => rmSync(folder, { recursive: true }))

const ROOT = 'ab'.repeat(32)
const PAYLOAD = 1000

/** A chain of blocks of 4 tokens; payloads are told apart by their bytes. */
function chainOf(blocks: number, first: number): TierBlock[] {
  const tokens = Array.from({ length: 4 * blocks }, (_, i) => first + i)
  return blockHashes(ROOT, tokens, 4).map((hash, i, all) => ({
    hash,
    parent: all[i - 1] ?? null,
    tokens: tokens.slice(4 * i, 4 * i + 4),
    payload: Uint8Array.from({ length: PAYLOAD }, (_, k) => first + i + k),
  }))
}
const names = (blocks: readonly TierBlock[]) => blocks.map((b) => b.hash)

async function all(payloads: AsyncIterable<Uint8Array>): Promise<Uint8Array[]> {
  const got: Uint8Array[] = []
  for await (const p of payloads) got.push(p)
  return got
}

let nextFolder = 0
const tiers: Record<string, { block: number; make: (maxBytes: number) => Promise<Tier> }> = {
  host: { block: PAYLOAD, make: async (maxBytes) => new HostTier({ maxBytes }) },
  disk: {
    block: blockFileBytes(4, PAYLOAD),
    make: (maxBytes) => DiskTier.open(join(folder, `${nextFolder++}`), ROOT, { maxBytes }),
  },
}

for (const [name, { block: blockBytes, make }] of Object.entries(tiers))
  describe(`the ${name} tier`, () => {
    it('gives back what was put, at once and after flushing', async () => {
      const tier = await make(1e6)
      const chain = chainOf(8, 0)
      for (const b of chain) assert.equal(tier.put(b), true)
      for (const round of ['queued', 'stored']) {
        for (const b of chain) {
          assert.ok(tier.has(b.hash), round)
          assert.deepEqual(await tier.get(b.hash), b.payload, round)
        }
        const payloads = await all(tier.getMany(names(chain)))
        assert.deepEqual(
          payloads,
          chain.map((b) => b.payload),
        )
        await tier.flush()
      }
      const { blocks, bytes, hits, misses, written, dropped, evicted, corrupt } = tier.stats
      assert.deepEqual({ blocks, bytes, hits, misses }, { blocks: 8, bytes: 8 * blockBytes, hits: 32, misses: 0 })
      assert.deepEqual({ written, dropped, evicted, corrupt }, { written: 8, dropped: 0, evicted: 0, corrupt: 0 })
      assert.equal(tier.put(chain[0]!), true, 'a second time')
      assert.equal(tier.stats.blocks, 8)
      await tier.close()
    })

    it('keeps bytes apart from a larger buffer that they were a view of', async () => {
      const tier = await make(1e6)
      const [b] = chainOf(1, 0)
      const large = Buffer.alloc(64, 7)
      assert.ok(tier.put({ ...b!, payload: large.subarray(10, 20) }))
      await tier.flush()
      large.fill(9)
      assert.deepEqual(new Uint8Array((await tier.get(b!.hash))!), new Uint8Array(10).fill(7))
      await tier.close()
    })

    it('gives a chain up to the first block that is missing', async () => {
      const tier = await make(1e6)
      const chain = chainOf(6, 0)
      for (const b of chain) tier.put(b)
      await tier.flush()
      tier.delete(chain[3]!.hash)
      assert.equal(tier.has(chain[3]!.hash), false)
      assert.equal((await all(tier.getMany(names(chain)))).length, 3)
      assert.deepEqual([tier.stats.hits, tier.stats.misses], [3, 1])
      for await (const payload of tier.getMany(names(chain))) {
        assert.deepEqual(payload, chain[0]!.payload)
        break
      }
      assert.equal(tier.stats.hits, 4)
      assert.deepEqual(await all(tier.getMany([])), [])
      await tier.close()
    })

    it('keeps its limit: the least recently used go first, children before parents', async () => {
      const tier = await make(10 * blockBytes)
      const [old, used, late] = [chainOf(4, 0), chainOf(4, 1000), chainOf(5, 2000)]
      for (const b of [...old, ...used]) tier.put(b)
      await tier.flush()
      tier.touch(names(old))
      assert.equal((await all(tier.getMany(names(used)))).length, 4)
      for (const b of late) assert.equal(tier.put(b), true)
      await tier.flush()
      assert.deepEqual(
        [...old, ...used, ...late].map((b) => tier.has(b.hash)),
        [true, false, false, false, true, true, true, true, true, true, true, true, true],
      )
      assert.ok(tier.stats.bytes <= 10 * blockBytes)
      assert.equal(tier.stats.evicted, 3)
      await tier.close()
    })

    it('keeps the beginning of a chain that does not fit', async () => {
      const tier = await make(10 * blockBytes)
      const chain = chainOf(25, 0)
      assert.equal(
        chain.findIndex((b) => !tier.put(b)),
        10,
      )
      assert.equal(tier.put(chain[10]!), false, 'nor later')
      await tier.flush()
      assert.equal((await all(tier.getMany(names(chain)))).length, 10)
      assert.deepEqual([tier.stats.dropped, tier.stats.evicted, tier.stats.written], [2, 0, 10])
      await tier.close()
    })

    it('keeps the order of a chain that comes from above, children first', async () => {
      const tier = await make(3 * blockBytes)
      const chain = chainOf(5, 0)
      for (const b of chain.toReversed()) assert.equal(tier.put(b), true)
      await tier.flush()
      assert.deepEqual(
        chain.map((b) => tier.has(b.hash)),
        [true, true, true, false, false],
      )
      await tier.close()
    })

    it('drops a block larger than the limit', async () => {
      const tier = await make(PAYLOAD / 2)
      assert.equal(tier.put(chainOf(1, 0)[0]!), false)
      assert.deepEqual([tier.stats.dropped, tier.stats.blocks], [1, 0])
      await tier.close()
    })

    it('forgets all on clear, and is empty once closed', async () => {
      const tier = await make(1e6)
      const chain = chainOf(8, 0)
      for (const b of chain) tier.put(b)
      await tier.clear()
      assert.deepEqual([tier.stats.blocks, tier.stats.bytes, tier.has(chain[0]!.hash)], [0, 0, false])
      assert.equal(await tier.get(chain[0]!.hash), null)
      assert.ok(tier.put(chain[0]!), 'goes on')
      await tier.close()
      await tier.close()
      assert.deepEqual([tier.has(chain[0]!.hash), tier.put(chain[1]!)], [false, false])
      assert.equal(await tier.get(chain[0]!.hash), null)
      assert.deepEqual(await all(tier.getMany(names(chain))), [])
      tier.delete(chain[0]!.hash)
      tier.touch(names(chain))
      await tier.clear()
      await tier.flush()
    })

    it('refuses names that are none, and misses them', async () => {
      const tier = await make(1e6)
      const [b] = chainOf(1, 0)
      const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT'
      for (const hash of ['', 'x', '../../etc/passwd', `${ROOT}/`]) {
        assert.throws(() => tier.put({ ...b!, hash }), isInvalid)
        assert.throws(() => tier.put({ ...b!, parent: hash }), isInvalid)
        assert.equal(tier.has(hash), false)
        assert.equal(await tier.get(hash), null)
        tier.delete(hash)
      }
      assert.throws(() => tier.put({ ...b!, payload: new Uint8Array(0) }), isInvalid)
      await tier.close()
    })

    it('survives deleting and putting the same blocks in any order', async () => {
      const tier = await make(1e6)
      const chain = chainOf(4, 0)
      for (let round = 0; round < 50; round++) {
        const b = chain[round % 4]!
        tier.put(b)
        if (round % 3 > 0) await new Promise(setImmediate)
        tier.delete(b.hash)
        assert.equal(await tier.get(b.hash), null)
        if (round % 2 > 0) await new Promise(setImmediate)
        tier.put(b)
        assert.deepEqual(await tier.get(b.hash), b.payload)
      }
      await tier.flush()
      assert.equal((await all(tier.getMany(names(chain)))).length, 4)
      assert.deepEqual([tier.stats.blocks, tier.stats.corrupt, tier.problem], [4, 0, null])
      await tier.close()
    })
  })

describe('the LRU list', () => {
  const order = (lru: Lru<null>) => Array.from(lru.entries(), (e) => e.key).join('')

  it('puts a chain in with its beginning newest', () => {
    const lru = new Lru<null>(() => 5)
    lru.add('a', null, 1)
    lru.add('b', null, 2, 'a')
    lru.add('c', null, 4, 'b')
    lru.add('x', null, 8, 'gone')
    assert.deepEqual([order(lru), lru.bytes, lru.size, lru.oldest], ['cbax', 15, 4, 'c'])
    lru.touch(['a', 'b', 'c'])
    assert.equal(order(lru), 'xcba')
    assert.equal(lru.delete('b'), true)
    assert.equal(lru.delete('b'), false)
    assert.deepEqual([order(lru), lru.bytes], ['xca', 13])
    const times = Array.from(lru.entries(), (e) => e.usedMs)
    assert.ok(times[0]! < times[1]! && times[1]! < times[2]!, 'times tell the order even if the clock stands still')
    lru.clear()
    lru.add('z', null, 1)
    assert.deepEqual([order(lru), lru.bytes, lru.oldest], ['z', 1, 'z'])
  })
})

describe('the rate of reading', () => {
  it('counts overlapping reads once, idle time not at all, and recent reads most', () => {
    let now = 0
    const meter = new RateMeter(() => now)
    assert.equal(meter.bytesPerSecond, null)
    meter.start()
    meter.start()
    now = 1000
    meter.end(500)
    meter.end(500)
    assert.ok(Math.abs(meter.bytesPerSecond! - 1000) < 100)
    now = 1e6
    for (let i = 0; i < 50; i++) {
      meter.start()
      now += 10
      meter.end(1000)
    }
    assert.ok(Math.abs(meter.bytesPerSecond! - 100_000) < 5000, `${meter.bytesPerSecond}`)
  })
})
