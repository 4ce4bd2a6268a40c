/**
 * `kvasir bench serve`: a load generator for any OpenAI-compatible server, in the words of `vllm bench serve`. It asks the
 * server which words are one token, makes prompts of the wanted lengths, sends them when they are due, and reads the streams.
 */
import { setMaxListeners } from 'node:events'
import { KvasirError } from '../../src/contract/errors.ts'
import { Random } from '../random-model.ts'
import { arrivalTimes, type Traffic } from './arrivals.ts'
import { runLoad, type Send } from './load.ts'
import type { Goodput, Metric } from './metrics.ts'
import { chatBody, completionBody, PromptMaker } from './prompt.ts'
import { makeResult, type ServeResult } from './result.ts'
import { Target, type TargetOptions } from './target.ts'
import { findVocabulary } from './tokenizer.ts'
import type { Session, Turn } from './workload.ts'

export interface ServeBenchOptions extends TargetOptions, Traffic {
  /** `/v1/completions` or `/v1/chat/completions`; other paths that end so are such endpoints too. */
  readonly endpoint: string
  /** Default: the first that the server lists. */
  readonly model?: string | undefined
  /** Name of the dataset, for the result. */
  readonly dataset: string
  readonly sessions: readonly Session[]
  readonly seed: number
  /** Send tokens instead of text; completions only. */
  readonly tokenIds: boolean
  readonly ignoreEos: boolean
  /** More fields of each request, e.g. `temperature`. */
  readonly extraBody: Readonly<Record<string, unknown>>
  readonly maxConcurrency: number | null
  readonly warmups: number
  readonly retry429: boolean
  readonly metrics: readonly Metric[]
  readonly percentiles: readonly number[]
  readonly goodput: Goodput
  readonly detailed: boolean
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((done: number, total: number) => void) | undefined
  readonly onNote?: ((note: string) => void) | undefined
}

/** @throws KvasirError INVALID_ARGUMENT, ABORTED; requests that fail are part of the result. */
export async function serveBench(options: ServeBenchOptions): Promise<ServeResult> {
  const { sessions, seed, signal, rate, burstiness, maxConcurrency, retry429 } = options
  const notes: string[] = []
  const onNote = (note: string) => {
    notes.push(note)
    options.onNote?.(note)
  }
  const isChat = isChatEndpoint(options.endpoint)
  checkTokenIds(options, isChat)
  // Every request under way listens to it.
  if (signal) setMaxListeners(0, signal)
  using target = new Target(options)
  const model = options.model ?? (await target.firstModel())
  const maker = new PromptMaker(await findVocabulary(target, model, onNote), seed)
  const common = {
    ...{ model, stream: true, stream_options: { include_usage: true } },
    ...(options.ignoreEos ? { ignore_eos: true } : {}),
    ...options.extraBody,
  }
  const send: Send = async (turn, history) => {
    const body = isChat ? chatBody(maker, turn, history) : completionBody(maker, turn, history, options.tokenIds)
    const outcome = await target.stream(options.endpoint, { ...body, ...common }, signal)
    return { ...outcome, promptTokens: outcome.promptTokens ?? wantedTokens(turn) }
  }
  await warmUp(send, options)
  const own = sessions.map((s) => s.arrivalMs)
  const arrivalsMs = own.every((ms) => ms !== null)
    ? own
    : arrivalTimes(sessions.length, { rate, burstiness }, new Random(seed))
  const load = await runLoad(sessions, send, {
    ...{ arrivalsMs, maxConcurrency, retry429, signal, onProgress: options.onProgress },
  })
  if (load.results.some(({ outcome: o }) => o.error === null && o.outputTokens === null))
    onNote('the server reports no usage: pieces of answers were counted as tokens')
  const backend = isChat ? 'openai-chat' : 'openai'
  return makeResult(load, { ...options, backend, model }, { dataset: options.dataset, seed, notes }, new Date())
}

export function isChatEndpoint(endpoint: string): boolean {
  if (endpoint.endsWith('/chat/completions')) return true
  if (endpoint.endsWith('/completions')) return false
  const message = `--endpoint is "${endpoint}"; it must end in /completions or /chat/completions`
  throw new KvasirError('INVALID_ARGUMENT', message, { field: '--endpoint' })
}

function checkTokenIds({ tokenIds, sessions }: ServeBenchOptions, isChat: boolean): void {
  if (!tokenIds) return
  const invalid = (why: string) => new KvasirError('INVALID_ARGUMENT', `--token-ids: ${why}`, { field: '--token-ids' })
  if (isChat) throw invalid('a chat has no prompt of tokens; use --endpoint /v1/completions')
  if (sessions.some((s) => s.turns.length > 1)) throw invalid('answers come as text, so conversations must be text too')
  if (sessions.some((s) => typeof s.turns[0]?.content === 'string'))
    throw invalid('the prompts of this dataset are text')
}

/** Other prompts of the same lengths, so that none of those that are measured is cached. */
async function warmUp(send: Send, options: ServeBenchOptions): Promise<void> {
  const { warmups, sessions, signal, maxConcurrency } = options
  const first = sessions[0]?.turns[0]
  if (warmups === 0 || !first) return
  const { content } = first
  const others = Array.from({ length: warmups }, (_, i): Session => {
    const fresh = typeof content === 'string' ? content : content.map((p, k) => ({ ...p, key: `warm-up ${i} ${k}` }))
    return { turns: [{ ...first, content: fresh }], arrivalMs: null }
  })
  const arrivalsMs = new Float64Array(warmups)
  const { results } = await runLoad(others, send, { arrivalsMs, maxConcurrency, retry429: true, signal })
  const failed = results.find((r) => r.outcome.error !== null)
  if (failed) options.onNote?.(`a warm-up request failed: ${failed.outcome.error}`)
}

/** For servers that do not count; of a ready text only its words can be. */
function wantedTokens({ content }: Turn): number {
  return typeof content === 'string'
    ? content.split(/\s+/).filter(Boolean).length
    : content.reduce((sum, p) => sum + p.tokens, 0)
}
