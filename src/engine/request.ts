/** What a caller asks for, and what comes back. */

import { KvasirError } from '../contract/errors.ts'
import type { SamplingParams } from '../model/sampling/params.ts'
import type { ChatMessage } from '../model/template/template.ts'

export interface GenerateRequest {
  /** Turns of a conversation, put into text by the model's own chat template. One of `messages`, `prompt`, `tokens`. */
  readonly messages?: readonly ChatMessage[]
  /** Text to continue. Special tokens in it are recognised. */
  readonly prompt?: string
  /** Tokens to continue, taken as they are. */
  readonly tokens?: readonly number[] | Int32Array
  readonly sampling?: SamplingParams
  /** Most tokens to generate. Default: until the context is full. */
  readonly maxTokens?: number
  /** Texts that end the answer; they are not part of it. */
  readonly stop?: string | readonly string[]
  /** Tokens that end the answer, beside the model's own. */
  readonly stopTokens?: readonly number[]
  /** Answers to generate from one prompt, which is computed and stored once. Default 1. */
  readonly samples?: number
  /** Higher goes first when requests wait. Default 0. */
  readonly priority?: number
  /** Whose request it is: tenants share nothing, and get their turns in fairness. Default: one tenant for all. */
  readonly tenant?: string
  /** Cached prefixes are only shared between requests of the same salt. Default: none. */
  readonly salt?: string
  /** Give up with DEADLINE when the answer has not begun within this time from now, in milliseconds. */
  readonly deadlineMs?: number
  /** Stops the request, in the middle of a step too; the iteration then throws ABORTED. */
  readonly signal?: AbortSignal
}

export interface TokenLogprob {
  readonly token: number
  /** Natural logarithm of its probability before temperature and penalties. */
  readonly logprob: number
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
      readonly top?: readonly TokenLogprob[]
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
}

const FIELDS = [
  ...['messages', 'prompt', 'tokens', 'sampling', 'maxTokens', 'stop', 'stopTokens', 'samples', 'priority', 'tenant'],
  ...['salt', 'deadlineMs', 'signal'],
]

/** @throws KvasirError INVALID_ARGUMENT */
export function checkRequest(request: GenerateRequest, maxSamples: number): void {
  const invalid = (what: string) => new KvasirError('INVALID_ARGUMENT', what)
  const unknown = Object.keys(request).find((k) => !FIELDS.includes(k))
  if (unknown) throw invalid(`unknown field "${unknown}". Known: ${FIELDS.join(', ')}`)
  const given = (['messages', 'prompt', 'tokens'] as const).filter((k) => request[k] !== undefined)
  if (given.length !== 1)
    throw invalid(`a request needs one of messages, prompt and tokens; it has ${given.join(' and ') || 'none'}`)
  const { maxTokens, samples, priority, tenant, salt, deadlineMs } = request
  if (maxTokens !== undefined && (!Number.isSafeInteger(maxTokens) || maxTokens < 1))
    throw invalid(`maxTokens is ${maxTokens}; it must be a whole number from 1 up`)
  if (samples !== undefined && !(Number.isSafeInteger(samples) && samples >= 1 && samples <= maxSamples))
    throw invalid(`samples is ${samples}; it must be a whole number from 1 to ${maxSamples} (maxSequences)`)
  if (priority !== undefined && !Number.isFinite(priority))
    throw invalid(`priority is ${priority}; it must be a number`)
  if (deadlineMs !== undefined && !(deadlineMs >= 0)) throw invalid(`deadlineMs is ${deadlineMs}; it must be 0 or more`)
  for (const [name, value] of Object.entries({ tenant, salt }))
    if (value !== undefined && typeof value !== 'string') throw invalid(`${name} must be a text`)
}
