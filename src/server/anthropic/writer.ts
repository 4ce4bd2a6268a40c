/** An answer as Anthropic's message, and as the events of its stream. */
import { newId } from '../answer.ts'
import type { Block, BlockEvent, CallBlock } from '../blocks.ts'
import { type EndEvent, extrasOf } from '../gather.ts'

/** Counts as Anthropic counts: what was read from the cache is not part of `input_tokens`. */
export interface MessageUsage {
  readonly input_tokens: number
  readonly cache_creation_input_tokens: number
  readonly cache_read_input_tokens: number
  readonly output_tokens: number
}

export interface Message {
  readonly id: string
  readonly type: 'message'
  readonly role: 'assistant'
  readonly model: string
  readonly content: readonly object[]
  readonly stop_reason: string | null
  readonly stop_sequence: string | null
  readonly usage: MessageUsage
}

export interface MessageEvent {
  readonly type: string
  readonly [field: string]: unknown
}

/** @param inputTokens how many of them are cached is not known at the beginning */
export function newMessage(model: string, inputTokens: number): Message {
  return {
    id: newId('msg_'),
    type: 'message',
    role: 'assistant',
    model,
    content: [],
    stop_reason: null,
    stop_sequence: null,
    usage: {
      input_tokens: inputTokens,
      cache_creation_input_tokens: 0,
      cache_read_input_tokens: 0,
      output_tokens: 0,
    },
  }
}

export async function wholeMessage(
  message: Message,
  maxTokens: number,
  blocks: AsyncIterable<BlockEvent>,
): Promise<object> {
  const content: object[] = []
  for await (const event of blocks) {
    if (event.kind === 'close') content.push(contentBlock(event.block, inputOf))
    if (event.kind === 'end')
      return { ...message, content, ...stopOf(event, maxTokens), usage: usageOf(event), kvasir: extrasOf([event]) }
  }
  throw new Error('the answer ended without its end')
}

/** `message_start` comes with the first of the answer: until then an error has its own status. */
export async function* messageEvents(
  message: Message,
  maxTokens: number,
  blocks: AsyncIterable<BlockEvent>,
): AsyncGenerator<MessageEvent> {
  let begun = false
  for await (const event of blocks) {
    if (!begun) {
      yield { type: 'message_start', message }
      yield { type: 'ping' }
    }
    begun = true
    switch (event.kind) {
      case 'open':
        yield {
          type: 'content_block_start',
          index: event.index,
          content_block: contentBlock(event.block, () => ({})),
        }
        break
      case 'text':
        yield delta(event.index, { type: 'text_delta', text: event.text })
        break
      case 'json':
        yield delta(event.index, { type: 'input_json_delta', partial_json: event.json })
        break
      case 'close':
        yield { type: 'content_block_stop', index: event.index }
        break
      case 'end':
        yield {
          ...{ type: 'message_delta', delta: stopOf(event, maxTokens), usage: usageOf(event) },
          kvasir: extrasOf([event]),
        }
        yield { type: 'message_stop' }
        break
    }
  }
}

function delta(index: number, change: object): MessageEvent {
  return { type: 'content_block_delta', index, delta: change }
}

function contentBlock(block: Block, input: (call: CallBlock) => unknown): object {
  if (block.kind === 'text') return { type: 'text', text: block.text, citations: null }
  return { type: 'tool_use', id: block.id.replace('call_', 'toolu_'), name: block.name, input: input(block) }
}

/** Arguments that were cut off are no JSON; the stop reason tells of it. */
function inputOf({ json }: CallBlock): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return {}
  }
}

function stopOf(
  { finish, stop, timings }: EndEvent,
  maxTokens: number,
): Pick<Message, 'stop_reason' | 'stop_sequence'> {
  const reason = (stop_reason: string, stop_sequence: string | null = null) => ({ stop_reason, stop_sequence })
  switch (finish) {
    case 'length':
      return reason(timings.generated_tokens < maxTokens ? 'model_context_window_exceeded' : 'max_tokens')
    case 'tool_calls':
      return reason('tool_use')
    case 'stop':
      return typeof stop === 'string' ? reason('stop_sequence', stop) : reason('end_turn')
  }
}

function usageOf({ timings: { prompt_tokens, cached_tokens, generated_tokens } }: EndEvent): MessageUsage {
  return {
    input_tokens: prompt_tokens - cached_tokens,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: cached_tokens,
    output_tokens: generated_tokens,
  }
}
