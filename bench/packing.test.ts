/** Shape and sanity on a few prompts: rows are counted, nobody's first token changes. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { liveNatives } from '../src/ggml/owned.ts'
import { PACKINGS, packing } from './packing.ts'

test('what each scheduler computes, and that it gives the same first tokens', async () => {
  const rows = await packing({ prompts: [3, 9], threads: 1, rounds: 1 })
  assert.deepEqual(
    rows.map((r) => [r.prompts, r.lengths, r.scheduler]),
    [3, 9].flatMap((n) => ['log-normal', 'constant'].flatMap((l) => PACKINGS.map((p) => [n, l, p]))),
  )
  for (const r of rows) {
    assert.equal(r.tokens_differ, 0, JSON.stringify(r))
    assert.ok(r.prefill_ms > 0 && r.ttft_p50_ms > 0 && r.wall_ratio > 0 && r.cpu_ratio > 0, JSON.stringify(r))
    const padded = r.scheduler === 'prepacking-padded' || r.scheduler === 'length-ordered'
    if (!padded || r.lengths === 'constant') assert.equal(r.rows_computed, r.useful_tokens)
    if (r.lengths === 'constant') assert.deepEqual([r.row_ratio, r.pair_ratio], [1, 1])
    else assert.ok(r.row_ratio >= 1 && r.pair_ratio >= 1, JSON.stringify(r))
  }
  // Nine prompts are two batches: padding is less, and not nothing.
  const mixed = rows.filter((r) => r.prompts === 9 && r.lengths === 'log-normal')
  const [padded, ordered, packed, ragged] = mixed.map((r) => r.rows_computed)
  assert.ok(padded! > ordered! && ordered! > packed! && packed === ragged, JSON.stringify(mixed))
})

test('more prompts than an engine runs at once are refused', async () => {
  await assert.rejects(packing({ prompts: [257] }), { code: 'INVALID_ARGUMENT' })
})

after(() => assert.deepEqual(liveNatives(), {}))
