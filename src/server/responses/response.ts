/** The response object of OpenAI's responses API, and its output items. */
import { newId, usageOf } from '../answer.ts'
import type { Block, CallBlock, TextBlock } from '../blocks.ts'
import { type EndEvent, extrasOf } from '../gather.ts'
import { type Logprob, logprobOf } from '../logprobs.ts'
import type { ResponsesBody } from '../schemas/responses.ts'

export type Status = 'in_progress' | 'completed' | 'incomplete' | 'failed'

export interface OutputText {
  readonly type: 'output_text'
  readonly text: string
  readonly annotations: readonly never[]
  readonly logprobs: readonly Logprob[]
}

export type OutputItem =
  | {
      readonly type: 'message'
      readonly id: string
      readonly role: 'assistant'
      readonly status: Status
      readonly content: readonly OutputText[]
    }
  | {
      readonly type: 'function_call'
      readonly id: string
      readonly call_id: string
      readonly name: string
      readonly arguments: string
      readonly status: Status
    }

export interface ResponseObject {
  readonly id: string
  readonly object: 'response'
  readonly status: Status
  readonly output: readonly OutputItem[]
  readonly [field: string]: unknown
}

/** A response of which nothing has been made yet. Fields that were not asked for hold what applies then. */
export function newResponse(body: ResponsesBody, model: string): ResponseObject {
  return {
    id: newId('resp_'),
    object: 'response',
    created_at: Math.floor(Date.now() / 1000),
    status: 'in_progress',
    background: false,
    completed_at: null,
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    max_tool_calls: body.max_tool_calls ?? null,
    model,
    output: [],
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    prompt_cache_key: body.prompt_cache_key ?? null,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    safety_identifier: body.safety_identifier ?? null,
    service_tier: 'default',
    store: false,
    temperature: body.temperature ?? null,
    text: { ...body.text, format: body.text?.format ?? { type: 'text' } },
    tool_choice: body.tool_choice ?? 'auto',
    tools: (body.tools ?? []).map((tool) => ({ description: null, parameters: null, strict: null, ...tool })),
    top_logprobs: body.top_logprobs ?? 0,
    top_p: body.top_p ?? null,
    truncation: 'disabled',
    usage: null,
    user: body.user ?? null,
    metadata: body.metadata ?? {},
  }
}

/** What the end of the answer adds. */
export function ended(response: ResponseObject, output: readonly OutputItem[], end: EndEvent): ResponseObject {
  const full = end.finish === 'length'
  const { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details } = usageOf([end.timings])
  return {
    ...response,
    status: full ? 'incomplete' : 'completed',
    completed_at: full ? null : Math.floor(Date.now() / 1000),
    incomplete_details: full ? { reason: 'max_output_tokens' } : null,
    output,
    usage: {
      input_tokens: prompt_tokens,
      // Storing is not counted.
      input_tokens_details: { cached_tokens: prompt_tokens_details.cached_tokens, cache_write_tokens: 0 },
      output_tokens: completion_tokens,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens,
    },
    kvasir: extrasOf([end]),
  }
}

export function itemId(block: Block): string {
  return newId(block.kind === 'text' ? 'msg_' : 'fc_')
}

/** @param text null: the message has no part yet */
export function messageItem(id: string, status: Status, text: OutputText | null): OutputItem {
  return { type: 'message', id, role: 'assistant', status, content: text ? [text] : [] }
}

export function outputText({ text, tokens }: TextBlock): OutputText {
  return { type: 'output_text', text, annotations: [], logprobs: tokens.map(logprobOf) }
}

export function callItem(id: string, status: Status, call: CallBlock): OutputItem {
  return { type: 'function_call', id, call_id: call.id, name: call.name, arguments: call.json, status }
}
