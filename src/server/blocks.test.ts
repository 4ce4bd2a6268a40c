/** Answers as rows of blocks. */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import type { AnswerEvent, TokenInfo } from './answer.ts'
import { type BlockEvent, blocks } from './blocks.ts'

const token = (id: number): TokenInfo => ({ token: id, logprob: -id, bytes: [], top: [] })
const text = (text: string, info: TokenInfo | null = null): AnswerEvent => ({
  kind: 'text',
  sample: 0,
  text,
  token: info,
})
const call = (index: number): AnswerEvent => ({ kind: 'call', sample: 0, index, id: `call_${index}`, name: 'f' })
const json = (index: number, json: string): AnswerEvent => ({ kind: 'arguments', sample: 0, index, json })
const timings = {
  ...{ queue_ms: 0, prompt_tokens: 1, cached_tokens: 0, prompt_ms: 0, generated_tokens: 1, generated_ms: 0 },
  ...{ ttft_ms: 0, compute_ms: 0, policy_ms: 0, kv_bytes: 0, kv_bytes_full: 0 },
}
const end: AnswerEvent = { kind: 'end', sample: 0, finish: 'tool_calls', stop: null, seed: 1, timings }

async function* from(events: readonly AnswerEvent[]): AsyncGenerator<AnswerEvent> {
  yield* events
}

async function rows(events: readonly AnswerEvent[]): Promise<BlockEvent[]> {
  const got: BlockEvent[] = []
  for await (const event of blocks(from(events))) got.push(event)
  return got
}

it('opens, fills and closes one block after the other, texts and calls in their order', async () => {
  const got = await rows([
    text('a'),
    text('b'),
    call(0),
    json(0, '{'),
    json(0, '}'),
    call(1),
    json(1, '{}'),
    text('c'),
    end,
  ])
  assert.deepEqual(
    got.map((e) => (e.kind === 'end' ? 'end' : `${e.kind} ${e.index}`)),
    [
      ...['open 0', 'text 0', 'text 0', 'close 0', 'open 1', 'json 1', 'json 1', 'close 1'],
      ...['open 2', 'json 2', 'close 2', 'open 3', 'text 3', 'close 3', 'end'],
    ],
  )
  assert.deepEqual(
    got.flatMap((e) => (e.kind === 'close' ? [e.block.kind === 'text' ? e.block.text : e.block.json] : [])),
    ['ab', '{}', '{}', 'c'],
  )
})

it('keeps tokens for the text that they belong to', async () => {
  const events = [text('', token(1)), text('a', token(2)), text('', token(3)), call(0), text('', token(4)), end]
  const got = await rows(events)
  const tokensOf = (tokens: readonly TokenInfo[]) => tokens.map((t) => t.token)
  assert.deepEqual(
    got.flatMap((e) => (e.kind === 'text' ? [tokensOf(e.tokens)] : [])),
    [[1, 2]],
  )
  // What comes last shows nothing of its own, and is part of the whole.
  const [whole] = got.flatMap((e) => (e.kind === 'close' && e.block.kind === 'text' ? [e.block] : []))
  assert.deepEqual(tokensOf(whole!.tokens), [1, 2, 3])
})

it('is empty for an answer without text', async () => {
  assert.deepEqual(await rows([end]), [end])
})
