import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { overhead } from './overhead.ts'

describe('overhead', () => {
  it('runs the same requests over HTTP and in process', async () => {
    const notes: string[] = []
    const options = { streams: 2, promptTokens: 32, outputTokens: 16, threads: 1, rounds: 2 }
    const row = await overhead({ ...options, onNote: (n) => notes.push(n) })
    assert.deepEqual([row.streams, row.prompt_tokens, row.output_tokens], [2, 32, 16])
    assert.ok(row.http_tok_s > 0 && row.in_process_tok_s > 0, JSON.stringify(row))
    assert.ok(row.ratio > 0)
    // One round warms up, and does not count.
    assert.equal(notes.length, 3)
    await assert.rejects(overhead({ shape: 'qwen' }), /no model shape "qwen"; there are house/)
  })
})
