/** From the fields that APIs share to what the engine is asked. */
import type { EngineInfo } from '../engine/api.ts'
import type { GenerateRequest } from '../engine/request.ts'
import type { JsonSchema } from '../model/sampling/json-schema.ts'
import type { SamplingParams } from '../model/sampling/params.ts'
import { checkTools } from '../model/tools/check.ts'
import { type FunctionTool, type ToolChoice, toolGrammar } from '../model/tools/grammar.ts'
import type { Job } from './answer.ts'
import { ApiError } from './errors.ts'
import type { ResponseFormat, SamplingFields } from './schemas/sampling.ts'

/** Who asks; tenants share no cached prefix. */
export interface Caller {
  readonly tenant: string
  /** An answer must have begun within this time when the request does not say; null: never mind. */
  readonly deadlineMs: number | null
}

/** Everything about an answer but its prompt. */
export type Generation = Omit<GenerateRequest, 'messages' | 'prompt' | 'tokens' | 'signal' | 'tools'>

export interface Extras {
  readonly maxTokens: number | undefined
  /** How many most likely tokens to report; undefined: no log-probabilities. */
  readonly logprobs: number | undefined
  readonly format: ResponseFormat | undefined
}

/** @throws ApiError */
export function checkStream(body: { readonly stream?: boolean; readonly stream_options?: object }): void {
  if (body.stream_options && !body.stream)
    throw new ApiError(400, 'stream_options needs stream: true', { param: 'stream_options' })
}

/** @throws ApiError for fields that contradict each other */
export function generationOf(body: SamplingFields, caller: Caller, extras: Extras): Generation {
  const { maxTokens } = extras
  if (body.ignore_eos && maxTokens === undefined)
    throw new ApiError(400, 'ignore_eos needs a limit of tokens, e.g. max_tokens', { param: 'ignore_eos' })
  return defined({
    sampling: samplingOf(body, extras),
    maxTokens,
    stop: body.stop,
    stopTokens: body.stop_token_ids,
    ignoreEnd: body.ignore_eos,
    samples: body.n,
    priority: body.priority,
    tenant: caller.tenant,
    salt: body.cache_salt,
    policy: body.kvasir?.policy as Generation['policy'],
    budget: body.kvasir?.budget,
    compressAt: body.kvasir?.compress_at,
    cacheTypeK: body.kvasir?.cache_type_k,
    cacheTypeV: body.kvasir?.cache_type_v,
    deadlineMs: body.kvasir?.deadline_ms ?? caller.deadlineMs ?? undefined,
  })
}

function samplingOf(body: SamplingFields, { logprobs, format }: Extras): SamplingParams {
  const { grammar } = body
  if (grammar !== undefined && format !== undefined && format.type !== 'text')
    throw new ApiError(400, 'grammar and response_format exclude each other', { param: 'grammar' })
  return defined({
    temperature: body.temperature,
    topP: body.top_p,
    topK: body.top_k === -1 ? 0 : body.top_k,
    minP: body.min_p,
    typicalP: body.typical_p,
    topNSigma: body.kvasir?.top_n_sigma,
    repeatPenalty: body.repetition_penalty,
    repeatLastN: body.kvasir?.repeat_last_n,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias && biasOf(body.logit_bias),
    seed: body.seed === undefined ? undefined : seedOf(body.seed),
    logprobs,
    grammar,
    ...formatOf(format),
  })
}

/** OpenAI's -100 means "never". */
function biasOf(bias: Readonly<Record<string, number>>): Record<number, number> {
  return Object.fromEntries(Object.entries(bias).map(([token, b]) => [token, b === -100 ? -Infinity : b]))
}

/** Samplers know 32 bits of a seed, without the last value. */
function seedOf(seed: number): number {
  const range = 2 ** 32 - 1
  return ((seed % range) + range) % range
}

function formatOf(format: ResponseFormat | undefined): Pick<SamplingParams, 'json' | 'jsonSchema'> {
  if (format?.type === 'json_object') return { json: true }
  if (format?.type !== 'json_schema') return {}
  return { jsonSchema: (format.json_schema.schema ?? {}) as JsonSchema }
}

export interface ToolsAsked {
  readonly tools: readonly FunctionTool[] | undefined
  readonly choice: ToolChoice | 'none'
  readonly parallel: boolean
}

/**
 * A job for a conversation; with tools, the answer's grammar makes sure that calls are well-formed.
 * @throws ApiError, KvasirError INVALID_ARGUMENT, GRAMMAR_INVALID
 */
export function conversationJob(
  messages: NonNullable<GenerateRequest['messages']>,
  generation: Generation,
  asked: ToolsAsked,
  info: Pick<EngineInfo, 'toolFormat' | 'toolCallToken'>,
  templateOptions: Readonly<Record<string, unknown>> | undefined,
): Job {
  const { tools, choice, parallel } = asked
  const request = defined({ ...generation, messages, templateOptions })
  if (!tools?.length || choice === 'none') {
    if (choice !== 'none' && choice !== 'auto')
      throw new ApiError(400, 'tool_choice asks for a call, and there are no tools', { param: 'tool_choice' })
    return { request, tools: null }
  }
  checkTools(tools)
  const { sampling = {} } = generation
  if (sampling.grammar !== undefined)
    throw new ApiError(400, 'calls have a grammar of their own: grammar cannot be used with tools', {
      param: 'grammar',
    })
  const { json, jsonSchema, ...free } = sampling
  const schema = json ? { type: 'object' } : jsonSchema
  const { toolFormat: format, toolCallToken: controlToken } = info
  const grammar = toolGrammar(tools, {
    format,
    choice,
    parallel,
    controlToken,
    ...(choice === 'auto' && defined({ answer: schema })),
  })
  return { request: { ...request, tools, sampling: { ...free, grammar } }, tools: format }
}

/** Without fields that are undefined: for the engine, a field that is there was given. */
export function defined<T extends object>(fields: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never
}
