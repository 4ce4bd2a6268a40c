/** Rows of the stall bench on the house model with short prompts: that they mean what they say. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { loadNative } from '../src/ggml/library.ts'
import { liveNatives } from '../src/ggml/owned.ts'
import { type StallRow, stall } from './stall.ts'

const KEYS = ['scheduler', 'itl_p50_ms', 'itl_p99_ms', 'quiet_itl_p99_ms', 'ttft_p50_ms']
let natives: Record<string, number>

before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

test('a row for each scheduler; under fcfs answers stand still for the whole prompt', async () => {
  const rows = await stall({ shape: 'house', promptTokens: 1536, tokenBudget: 36, rounds: 1, threads: 1 })
  assert.deepEqual(
    rows.map((r) => r.scheduler),
    ['fcfs', 'sarathi', 'sarathi-serve'],
  )
  for (const row of rows) {
    assert.deepEqual(Object.keys(row), KEYS)
    assert.ok(0 < row.itl_p50_ms && row.itl_p50_ms <= row.itl_p99_ms, JSON.stringify(row))
    assert.ok(row.quiet_itl_p99_ms > 0 && row.ttft_p50_ms > 0, JSON.stringify(row))
  }
  const [fcfs, , serve] = rows as [StallRow, StallRow, StallRow]
  assert.ok(fcfs.itl_p99_ms > 0.8 * fcfs.ttft_p50_ms, JSON.stringify(fcfs))
  assert.ok(serve.itl_p50_ms < fcfs.itl_p99_ms / 4, JSON.stringify(rows))
})

test('finds a budget of its own', async () => {
  const notes: string[] = []
  await stall({ shape: 'house', promptTokens: 64, rounds: 1, threads: 1, onNote: (n) => notes.push(n) })
  assert.match(notes.find((n) => n.startsWith('token budget'))!, /^token budget of sarathi-serve: \d+$/)
})

test('refuses shapes that it does not know', async () => {
  await assert.rejects(stall({ shape: 'qwen' }), /no model shape "qwen"; there are house, llama-3.2-1b-2layers/)
})
