/** Rows of the cache bench on the house model: that they mean what they say. Their speed is for the bench itself. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { loadNative } from '../src/ggml/library.ts'
import { liveNatives } from '../src/ggml/owned.ts'
import { type CacheRow, cache } from './cache.ts'

const KEYS = ['case', 'context', 'cold_ms', 'hit_ms', 'ratio', 'kv_bytes', 'kv_bytes_unshared']
let natives: Record<string, number>

before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

test('hits from memory and disk, and a shared prefix', async () => {
  const seen: CacheRow[] = []
  // That hits find every block, and answer as the cold run did, the bench checks itself.
  const rows = await cache({
    ...{ shape: 'house', contexts: [1024], sharedPrefix: 256, threads: 1 },
    onRow: (row) => seen.push(row),
  })
  assert.deepEqual(seen, rows)
  assert.deepEqual(
    rows.map((r) => [r.case, r.context]),
    [
      ['memory', 1024],
      ['disk', 1024],
      ['shared-prefix', 256],
    ],
  )
  for (const row of rows) {
    assert.deepEqual(Object.keys(row), KEYS)
    assert.ok(row.cold_ms > 0 && row.hit_ms > 0, JSON.stringify(row))
  }
  const [memory, disk, shared] = rows as [CacheRow, CacheRow, CacheRow]
  assert.ok(memory.ratio > 2, `32 rows instead of 1024: ${memory.ratio}`)
  assert.equal(memory.ratio, memory.cold_ms / memory.hit_ms)
  // The stored prompt, and for the hit a block of its own; and one for the row of its answer.
  assert.ok(memory.kv_bytes < 0.6 * memory.kv_bytes_unshared, JSON.stringify(memory))
  assert.equal(disk.kv_bytes, disk.kv_bytes_unshared, 'one prompt is in memory')
  // 8 blocks shared, and eight times 40 to 56 rows of each chat's own: two blocks.
  assert.equal(shared.ratio, shared.kv_bytes_unshared / shared.kv_bytes)
  assert.ok(shared.ratio > 3 && shared.ratio < 8, `${shared.ratio}`)
})

test('refuses shapes that it does not know', async () => {
  await assert.rejects(cache({ shape: 'qwen' }), /no model shape "qwen"; there are house, qwen2.5-0.5b/)
})
