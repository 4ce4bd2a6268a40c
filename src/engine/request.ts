/** What a caller asks for, and what comes back. */

import type { CacheType } from '../cache/arena.ts'
import { KvasirError } from '../contract/errors.ts'
import type { TokenLogprob } from '../model/sampling/logprobs.ts'
import type { SamplingParams } from '../model/sampling/params.ts'
import type { ChatMessage } from '../model/template/template.ts'
import type { PolicySpec } from '../policies/index.ts'

export type { TokenLogprob }

/** What a text is made of: one of `messages`, `prompt` and `tokens`. */
export interface PromptRequest {
  /** Turns of a conversation, put into text by the model's own chat template. */
  readonly messages?: readonly ChatMessage[]
  /** With `messages`: functions that the model may call, in OpenAI's form. */
  readonly tools?: readonly object[]
  /** With `messages`: more variables for the chat template, e.g. `{ enable_thinking: false }`. */
  readonly templateOptions?: Readonly<Record<string, unknown>>
  /** Text to continue. Special tokens in it are recognised. */
  readonly prompt?: string
  /** With `prompt`: put BOS in front and EOS behind where the model wants them. Default true. */
  readonly addSpecial?: boolean
  /** Tokens to continue, taken as they are. */
  readonly tokens?: readonly number[] | Int32Array
}

/** How a request shares the engine with others. */
export interface SharingRequest {
  /** Higher goes first when requests wait. Default 0. */
  readonly priority?: number
  /** Whose request it is: tenants share nothing, and get their turns in fairness. Default: one tenant for all. */
  readonly tenant?: string
  /** Cached prefixes are only shared between requests of the same salt. Default: none. */
  readonly salt?: string
  /** Give up with DEADLINE when the answer has not begun within this time from now, in milliseconds. */
  readonly deadlineMs?: number
  /** Stops the request, in the middle of a step too; the call then throws ABORTED. */
  readonly signal?: AbortSignal
}

/** Types of a request's own cache. Prefixes are shared between requests of the same types only. */
export interface CacheTypesRequest {
  /** Type of its cached keys. Default: the engine's `keyType`. On the CPU only. */
  readonly cacheTypeK?: CacheType
  /** Type of its cached values. Default: the engine's `valueType`. */
  readonly cacheTypeV?: CacheType
}

export interface GenerateRequest extends PromptRequest, SharingRequest, CacheTypesRequest {
  readonly sampling?: SamplingParams
  /** Most tokens to generate. Default: until the context is full. */
  readonly maxTokens?: number
  /** Texts that end the answer; they are not part of it. */
  readonly stop?: string | readonly string[]
  /** Tokens that end the answer, beside the model's own. */
  readonly stopTokens?: readonly number[]
  /** Go on behind the model's own end of an answer, for load tests: needs `maxTokens`, and no grammar. Default false. */
  readonly ignoreEnd?: boolean
  /** What shortens the cache when the prompt is complete: `snapkv`, `'cake?window=32&gamma=200'`, or an object. Default: nothing does. */
  readonly policy?: string | PolicySpec
  /** What a policy may keep: a fraction of the full cache (0.25), tokens per layer and KV head (512), or bytes ('64MiB'). */
  readonly budget?: number | string
  /**
   * Tokens of the prompt, from its beginning, that the policy sees and shortens; the rest is computed over what it kept. For
   * documents about which questions are asked later. Default: the whole prompt.
   */
  readonly compressAt?: number
  /**
   * The answer, whatever the model would say: for measuring how likely it is, with `sampling.logprobs`. Ends with `max-tokens`.
   * Goes with no maxTokens, stop, grammar or samples.
   */
  readonly forced?: readonly number[] | Int32Array
  /** Answers to generate from one prompt, which is computed and stored once. Default 1. */
  readonly samples?: number
}

/** A token, how likely it was, and what it reads. */
export interface TokenText extends TokenLogprob {
  /** Its UTF-8 bytes, perhaps a part of a character; of control tokens their text. */
  readonly bytes: readonly number[]
}

export type GeneratePart =
  | {
      readonly kind: 'token'
      readonly token: number
      /** Which of several samples, from 0; absent when there is one. */
      readonly sample?: number
      /** Text that became certain with this token: can be empty, or hold characters of earlier ones. */
      readonly text: string
      /** With `sampling.logprobs`. */
      readonly logprob?: number
      /** With `logprob`: {@link TokenText.bytes}. */
      readonly bytes?: readonly number[]
      readonly top?: readonly TokenText[]
    }
  | {
      readonly kind: 'end'
      /** Which of several samples; each ends by itself. */
      readonly sample?: number
      /** Text that was held back as the possible beginning of a stop text. */
      readonly text: string
      readonly reason: FinishReason
      /** Gives the same answer again, with the same request and machine. */
      readonly seed: number
      /** Id of the request in events, the same for all its samples. */
      readonly request: number
      readonly timings: Timings
    }

export type FinishReason =
  /** The model ended its answer. */
  | { readonly kind: 'end-of-answer'; readonly token: number }
  /** A stop text or stop token came up. */
  | { readonly kind: 'stop'; readonly stop: string | number }
  /** `maxTokens` were generated. */
  | { readonly kind: 'max-tokens' }
  /** The context is full. */
  | { readonly kind: 'context-full' }

/** Names and units are those of the CLI's JSON. */
export interface Timings {
  /** From the request's arrival until it got its first pages. */
  readonly queue_ms: number
  readonly prompt_tokens: number
  /** Prompt tokens whose keys and values were still in the cache: whole blocks of 32. */
  readonly cached_tokens: number
  /** From the start of work on the prompt until its last logits. */
  readonly prompt_ms: number
  readonly generated_tokens: number
  /** From the last logits of the prompt until the end. */
  readonly generated_ms: number
  /** Time to first token: from the request's arrival, waiting included, until its first token was sampled. */
  readonly ttft_ms: number
  /** Milliseconds inside ggml's graph computation, prompt and answer. */
  readonly compute_ms: number
  /** Of that and beside it, what a policy took: looking at the prompt's end, planning, dropping rows. */
  readonly policy_ms: number
  /** Keys and values held at the end, shared ones included: whole blocks of 32 rows. */
  readonly kv_bytes: number
  /** The same, had everything been kept, in the engine's own types. */
  readonly kv_bytes_full: number
}

export const PROMPT_FIELDS = ['messages', 'tools', 'templateOptions', 'prompt', 'addSpecial', 'tokens'] as const
export const SHARING_FIELDS = ['priority', 'tenant', 'salt', 'deadlineMs', 'signal'] as const
const FIELDS = [
  ...PROMPT_FIELDS,
  ...SHARING_FIELDS,
  'sampling',
  'maxTokens',
  'stop',
  'stopTokens',
  'ignoreEnd',
  'samples',
  'policy',
  'budget',
  'compressAt',
  'cacheTypeK',
  'cacheTypeV',
  'forced',
]

/** @throws KvasirError INVALID_ARGUMENT */
export function checkRequest(request: GenerateRequest, maxSamples: number): void {
  checkFields(request, FIELDS)
  checkPrompt(request)
  checkSharing(request)
  const { maxTokens, samples, ignoreEnd, sampling = {} } = request
  if (ignoreEnd !== undefined && typeof ignoreEnd !== 'boolean') throw invalid('ignoreEnd must be true or false')
  if (ignoreEnd && (maxTokens === undefined || sampling.grammar !== undefined || sampling.jsonSchema || sampling.json))
    throw invalid('ignoreEnd needs maxTokens, and goes with no grammar, jsonSchema or json: those end an answer')
  if (maxTokens !== undefined && (!Number.isSafeInteger(maxTokens) || maxTokens < 1))
    throw invalid(`maxTokens is ${maxTokens}; it must be a whole number from 1 up`)
  if (request.forced) {
    if (request.forced.length === 0) throw invalid('forced is empty; it must hold the tokens of an answer', 'forced')
    const others = ['maxTokens', 'stop', 'stopTokens', 'samples', 'ignoreEnd'] as const
    const other = others.find((field) => request[field] !== undefined)
    if (other || sampling.grammar !== undefined || sampling.jsonSchema || sampling.json)
      throw invalid(`forced is the whole answer: it goes with no ${other ?? 'grammar'}`, 'forced')
  }
  if (samples !== undefined && !(Number.isSafeInteger(samples) && samples >= 1 && samples <= maxSamples))
    throw invalid(`samples is ${samples}; it must be a whole number from 1 to ${maxSamples} (maxSequences)`, 'samples')
}

/** @throws KvasirError INVALID_ARGUMENT for tokens that are none */
export function checkForced(forced: GenerateRequest['forced'], vocab: number): void {
  const wrong = forced && Array.from(forced).find((t) => !(Number.isInteger(t) && t >= 0 && t < vocab))
  if (wrong !== undefined) throw invalid(`forced holds ${wrong}, which is no token of this vocabulary`, 'forced')
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkFields(request: object, known: readonly string[]): void {
  const unknown = Object.keys(request).find((k) => !known.includes(k))
  if (unknown) throw invalid(`unknown field "${unknown}". Known: ${known.join(', ')}`)
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkPrompt({ messages, tools, templateOptions, prompt, addSpecial, tokens }: PromptRequest): void {
  const given = Object.entries({ messages, prompt, tokens }).filter(([, value]) => value !== undefined)
  if (given.length !== 1)
    throw invalid(
      `a request needs one of messages, prompt and tokens; it has ${given.map(([k]) => k).join(' and ') || 'none'}`,
    )
  if (prompt !== undefined && typeof prompt !== 'string') throw invalid('prompt must be a text')
  if (!messages)
    for (const [name, value] of Object.entries({ tools, templateOptions }))
      if (value !== undefined) throw invalid(`${name} go to the chat template: they need messages`)
  const isObject = (value: unknown) => typeof value === 'object' && value !== null && !Array.isArray(value)
  if (tools !== undefined && !(Array.isArray(tools) && tools.every(isObject)))
    throw invalid('tools must be a list of objects')
  if (templateOptions !== undefined && !isObject(templateOptions)) throw invalid('templateOptions must be an object')
  if (addSpecial === undefined) return
  if (prompt === undefined)
    throw invalid(
      'addSpecial needs prompt: chat templates write their own special tokens, and tokens are taken as they are',
    )
  if (typeof addSpecial !== 'boolean') throw invalid(`addSpecial is ${addSpecial}; it must be true or false`)
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkSharing({ priority, tenant, salt, deadlineMs }: SharingRequest): void {
  if (priority !== undefined && !Number.isFinite(priority))
    throw invalid(`priority is ${priority}; it must be a number`)
  if (deadlineMs !== undefined && !(deadlineMs >= 0)) throw invalid(`deadlineMs is ${deadlineMs}; it must be 0 or more`)
  for (const [name, value] of Object.entries({ tenant, salt }))
    if (value !== undefined && typeof value !== 'string') throw invalid(`${name} must be a text`)
}

function invalid(what: string, field?: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', what, field === undefined ? {} : { field })
}
