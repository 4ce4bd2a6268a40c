/**
 * One answer as a row of blocks, text and calls in the order in which they were written: what OpenAI's responses and
 * Anthropic's messages are made of. A block opens, grows and closes before the next one opens.
 */
import type { AnswerEvent, TokenInfo } from './answer.ts'
import type { EndEvent } from './gather.ts'

export interface TextBlock {
  readonly kind: 'text'
  text: string
  /** Only with log-probabilities. */
  readonly tokens: TokenInfo[]
}

export interface CallBlock {
  readonly kind: 'call'
  readonly id: string
  readonly name: string
  /** The arguments as JSON text; cut off where the answer was. */
  json: string
}

export type Block = TextBlock | CallBlock

export type BlockEvent =
  /** `index` counts the blocks from 0. The block is empty. */
  | { readonly kind: 'open'; readonly index: number; readonly block: Block }
  | { readonly kind: 'text'; readonly index: number; readonly text: string; readonly tokens: readonly TokenInfo[] }
  | { readonly kind: 'json'; readonly index: number; readonly json: string }
  /** The block is whole. */
  | { readonly kind: 'close'; readonly index: number; readonly block: Block }
  | EndEvent

/** @param events of one sample */
export async function* blocks(events: AsyncIterable<AnswerEvent>): AsyncGenerator<BlockEvent> {
  let block: Block | null = null
  let index = -1
  /** Tokens whose text has not come yet. */
  let held: TokenInfo[] = []
  function* open(next: Block): Generator<BlockEvent> {
    yield* close()
    block = next
    yield { kind: 'open', index: ++index, block: structuredClone(next) }
  }
  function* close(): Generator<BlockEvent> {
    if (!block) return
    if (block.kind === 'text') block.tokens.push(...held)
    held = []
    yield { kind: 'close', index, block }
    block = null
  }
  // A function, since what `open` and `close` do to it is not seen by the compiler.
  const current = (): Block | null => block
  for await (const event of events) {
    switch (event.kind) {
      case 'text': {
        // The tokens of a call have no place in either API.
        if (event.token && current()?.kind !== 'call') held.push(event.token)
        if (event.text === '') break
        if (current()?.kind !== 'text') yield* open({ kind: 'text', text: '', tokens: [] })
        const text = current() as TextBlock
        text.text += event.text
        text.tokens.push(...held)
        yield { kind: 'text', index, text: event.text, tokens: held }
        held = []
        break
      }
      case 'call':
        yield* open({ kind: 'call', id: event.id, name: event.name, json: '' })
        break
      case 'arguments':
        ;(current() as CallBlock).json += event.json
        yield { kind: 'json', index, json: event.json }
        break
      case 'end':
        yield* close()
        yield event
        break
    }
  }
}
