/**
 * One answer as all APIs need it: the engine's parts, with tool calls found in the text and reasons in the field's words.
 * Each API writes these events in its own form.
 */
import { randomBytes } from 'node:crypto'
import type { EngineApi } from '../engine/api.ts'
import type { FinishReason, GenerateRequest, Timings, TokenText } from '../engine/request.ts'
import type { ToolFormat } from '../model/tools/format.ts'
import { ToolCallParser, type ToolEvent } from '../model/tools/parse.ts'

export interface Job {
  readonly request: Omit<GenerateRequest, 'signal'>
  /** How calls are written in the text; null: calls are not looked for. */
  readonly tools: ToolFormat | null
}

export interface TokenInfo extends TokenText {
  readonly top: readonly TokenText[]
}

export type Finish = 'stop' | 'length' | 'tool_calls'

export type AnswerEvent =
  /** `token` only with log-probabilities; its text may come with a later event. */
  | { readonly kind: 'text'; readonly sample: number; readonly text: string; readonly token: TokenInfo | null }
  /** A tool call begins; `index` counts the calls of its sample. */
  | {
      readonly kind: 'call'
      readonly sample: number
      readonly index: number
      readonly id: string
      readonly name: string
    }
  /** More of a call's arguments, as JSON text. */
  | { readonly kind: 'arguments'; readonly sample: number; readonly index: number; readonly json: string }
  | {
      readonly kind: 'end'
      readonly sample: number
      readonly finish: Finish
      /** The stop text or token that ended it. */
      readonly stop: string | number | null
      readonly seed: number
      readonly timings: Timings
    }

/** A token came, whether or not there is text to show for it yet. */
export interface TokenMark {
  readonly kind: 'token'
  readonly sample: number
}

/**
 * Events for an API, and marks for measures, which `RouteContext.track` takes out.
 * @throws KvasirError what `generate` throws
 */
export async function* answer(
  engine: EngineApi,
  job: Job,
  signal: AbortSignal,
): AsyncGenerator<AnswerEvent | TokenMark> {
  const parsers = new Map<number, ToolCallParser>()
  const called = new Set<number>()
  for await (const part of engine.generate({ ...job.request, signal })) {
    const sample = part.sample ?? 0
    if (part.kind === 'token') yield { kind: 'token', sample }
    const token = part.kind === 'token' ? tokenInfo(part) : null
    if (!job.tools) {
      if (part.text !== '' || token) yield { kind: 'text', sample, text: part.text, token }
    } else {
      const parser = parsers.get(sample) ?? new ToolCallParser(job.tools)
      parsers.set(sample, parser)
      const found = [...parser.feed(part.text), ...(part.kind === 'end' ? parser.end() : [])]
      const events = found.flatMap((e) => toEvent(e, sample))
      if (found.some((e) => e.kind === 'call')) called.add(sample)
      if (token && !events.some((e) => e.kind === 'text')) yield { kind: 'text', sample, text: '', token }
      let left = token
      for (const event of events) {
        yield event.kind === 'text' ? { ...event, token: left } : event
        if (event.kind === 'text') left = null
      }
    }
    if (part.kind !== 'end') continue
    const { reason, seed, timings } = part
    const stop = reason.kind === 'stop' ? reason.stop : null
    yield { kind: 'end', sample, finish: finishOf(reason, called.has(sample)), stop, seed, timings }
  }
}

function toEvent(event: ToolEvent, sample: number): AnswerEvent[] {
  switch (event.kind) {
    case 'text':
      return [{ kind: 'text', sample, text: event.text, token: null }]
    case 'call':
      return [{ kind: 'call', sample, index: event.index, id: newId('call_'), name: event.name }]
    case 'arguments':
      return [{ kind: 'arguments', sample, index: event.index, json: event.json }]
    case 'call-end':
      return []
  }
}

function tokenInfo(part: Partial<TokenText> & { readonly top?: readonly TokenText[] }): TokenInfo | null {
  const { token, logprob, bytes, top } = part
  if (token === undefined || logprob === undefined || bytes === undefined) return null
  return { token, logprob, bytes, top: top ?? [] }
}

function finishOf(reason: FinishReason, called: boolean): Finish {
  if (reason.kind === 'max-tokens' || reason.kind === 'context-full') return 'length'
  return called ? 'tool_calls' : 'stop'
}

/** `chatcmpl-...` and the like: 24 random characters. */
export function newId(prefix: string): string {
  return prefix + randomBytes(18).toString('base64url').replace(/[-_]/g, 'x')
}

export interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly total_tokens: number
  readonly prompt_tokens_details: { readonly cached_tokens: number }
  readonly completion_tokens_details: { readonly reasoning_tokens: number }
}

/** Of all samples of one prompt, which counts once. */
export function usageOf(timings: readonly Timings[]): Usage {
  const prompt = timings[0]?.prompt_tokens ?? 0
  const completion = timings.reduce((sum, t) => sum + t.generated_tokens, 0)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: timings[0]?.cached_tokens ?? 0 },
    completion_tokens_details: { reasoning_tokens: 0 },
  }
}
