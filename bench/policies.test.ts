/** Rows of the policies bench on the house model with a short prompt: that they mean what they say. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { policies } from './policies.ts'

test('a row for each policy: bytes fall to the budget, the full cache is what they are measured against', async () => {
  const names = ['snapkv', 'streaming-llm', 'h2o', 'cake?prefill=cascade']
  const rows = await policies({ shape: 'house', policies: names, contexts: [768], budget: 0.25, rounds: 1, threads: 1 })
  assert.deepEqual(
    rows.map((r) => r.policy),
    names,
  )
  for (const row of rows) {
    assert.ok(row.kv_bytes < 0.45 * row.kv_bytes_full, JSON.stringify(row))
    assert.ok(row.prefill_ms > 0 && row.decode_tok_s > 0 && row.full_decode_tok_s > 0, JSON.stringify(row))
    assert.ok(Math.abs(row.ratio - row.decode_tok_s / row.full_decode_tok_s) < 1e-9)
    assert.ok(Math.abs(row.overhead - row.policy_ms / row.prefill_ms) < 1e-9)
  }
})

test('refuses names that it does not know before anything is loaded', async () => {
  await assert.rejects(policies({ policies: ['snapvk'] }), /Did you mean 'snapkv'/)
  await assert.rejects(policies({ shape: 'qwen' }), /no model shape "qwen"/)
})
