/** The old form of log-probabilities, where tokens are parts of characters. */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { OldLogprobs } from './old-logprobs.ts'

it('names parts of characters by their bytes, and counts characters', () => {
  const token = (bytes: readonly number[]) => ({
    token: 1,
    logprob: -1,
    bytes,
    top: [{ token: 2, logprob: -2, bytes }],
  })
  // a, the first two and the last two bytes of U+1F600, b: two steps, as in a stream
  const tokens = [[0x61], [0xf0, 0x9f], [0x98, 0x80], [0x62]].map(token)
  const logprobs = new OldLogprobs()
  const parts = [logprobs.of(tokens.slice(0, 2)), logprobs.of(tokens.slice(2))]
  assert.deepEqual(
    parts.flatMap((p) => p.tokens),
    ['a', 'bytes:\\xf0\\x9f', 'bytes:\\x98\\x80', 'b'],
  )
  assert.deepEqual(
    parts.flatMap((p) => p.text_offset),
    [0, 1, 1, 2],
  )
  assert.deepEqual(parts[0]!.top_logprobs[1], { 'bytes:\\xf0\\x9f': -2 })
})
