/** Rows of the cache types bench on the house model: that they mean what they say. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { KvasirError } from '../src/contract/errors.ts'
import { loadNative } from '../src/ggml/library.ts'
import { liveNatives } from '../src/ggml/owned.ts'
import { loadLlama } from '../src/model/libllama/library.ts'
import { type CacheTypesRow, cacheTypes, type TypePair } from './cache-types.ts'

const KEYS = ['type_k', 'type_v', 'metric', 'context', 'ours_tok_s', 'peer_tok_s', 'ratio', 'kv_bytes_per_token']
const small = { shape: 'house', rounds: 1, threads: 1 } as const
const mixed: TypePair = { keys: 'q8_0', values: 'q4_0' }
let natives: Record<string, number>

before(async () => {
  await loadNative()
  await loadLlama()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

test('prefill and decode for each pair of types and each context, in order', async () => {
  const seen: CacheTypesRow[] = []
  const pairs: TypePair[] = [{ keys: 'f16', values: 'f16' }, mixed]
  const rows = await cacheTypes({ ...small, pairs, contexts: [300, 800], onRow: (row) => seen.push(row) })
  assert.deepEqual(seen, rows)
  assert.deepEqual(
    rows.map((r) => [r.type_k, r.type_v, r.metric, r.context]),
    pairs.flatMap(({ keys, values }) =>
      [300, 800].flatMap((context) => ['prefill', 'decode'].map((metric) => [keys, values, metric, context])),
    ),
  )
  for (const row of rows) {
    assert.deepEqual(Object.keys(row), KEYS)
    assert.ok(row.ours_tok_s > 0 && row.peer_tok_s! > 0, JSON.stringify(row))
    // One pair of runs: its ratio is that of the medians.
    assert.ok(Math.abs(row.ratio! - row.ours_tok_s / row.peer_tok_s!) < 1e-9 * row.ratio!, JSON.stringify(row))
  }
  // 6 layers of 2 KV heads of 64 values: 2 bytes each, or blocks of 32 in 34 bytes and 18.
  assert.deepEqual(
    rows.map((r) => r.kv_bytes_per_token),
    [...Array(4).fill(6 * 2 * 2 * 128), ...Array(4).fill(6 * 2 * 2 * (34 + 18))],
  )
})

test('where libllama does not take the types, ours alone, with a note', async () => {
  const notes: string[] = []
  const refuse = () => Promise.reject(new KvasirError('NATIVE_FAILED', 'no such context'))
  const options = { ...small, pairs: [mixed], contexts: [256], onNote: (note: string) => void notes.push(note) }
  const rows = await cacheTypes(options, refuse)
  assert.equal(rows.length, 2)
  for (const row of rows) {
    assert.ok(row.ours_tok_s > 0)
    assert.deepEqual([row.peer_tok_s, row.ratio], [null, null])
  }
  assert.deepEqual(notes, ['libllama does not take q8_0/q4_0: NATIVE_FAILED: no such context'])
})

test('refuses shapes that it does not know', async () => {
  await assert.rejects(cacheTypes({ shape: 'qwen' }), /no model shape "qwen"; there are house, qwen2.5-0.5b/)
})
