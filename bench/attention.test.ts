/** Shape and sanity on a tiny cache; that all ways give the same result is checked by the bench itself. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { liveNatives } from '../src/ggml/owned.ts'
import { attention, READINGS } from './attention.ts'

const shapes = [{ heads: 4, kvHeads: 2, headDim: 32 }]

test('a row for each way to read, in order', async () => {
  const seen: string[] = []
  const rows = await attention({ shapes, rows: [256], threads: [1], rounds: 1, onRow: (r) => seen.push(r.how) })
  assert.deepEqual(
    rows.map((r) => r.how),
    [...READINGS],
  )
  assert.deepEqual(seen, [...READINGS])
  for (const r of rows) {
    assert.deepEqual([r.heads, r.kv_heads, r.head_dim, r.rows, r.threads], [4, 2, 32, 256, 1])
    assert.ok(r.ms > 0 && r.cpu_ms >= 0 && r.ratio_to_flash > 0, JSON.stringify(r))
  }
  assert.equal(rows[0]!.ratio_to_flash, 1)
})

test('rows that are no multiple of what is read at once are refused', async () => {
  await assert.rejects(attention({ shapes, rows: [100], threads: [1], rounds: 1 }), { code: 'INVALID_ARGUMENT' })
})

after(() => assert.deepEqual(liveNatives(), {}))
