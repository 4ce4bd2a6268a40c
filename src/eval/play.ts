/** One example under one treatment, greedy. A player belongs to an example: what treatments share is computed once. */
import type { EngineApi } from '../engine/api.ts'
import type { CacheTypesRequest, GeneratePart, GenerateRequest, PromptRequest, Timings } from '../engine/request.ts'
import type { TokenLogprob } from '../model/sampling/logprobs.ts'
import { isTypes, readTypes } from './cache-types.ts'
import type { Dialogue, Passage } from './cells.ts'
import { messagesOf, type Piece, promptOf, type Step } from './plan.ts'
import type { Played } from './row.ts'
import { score } from './score.ts'
import { agreementOfTops } from './score-divergence.ts'
import { FULL, isFull, OWN, type Treatment } from './treatments.ts'

/** Likeliest tokens of each place: the most that an engine gives. */
const TOPS = 20

export type Player = (treatment: Treatment, signal: AbortSignal) => Promise<Played>

export interface PlayOptions {
  /** Ask without a chat template, for models that have none. */
  readonly raw: boolean
  /** Treatments of one salt find each other's prompts in the cache. */
  readonly salt: (treatment: Treatment) => string
}

export function makePlayer(engine: EngineApi, example: Dialogue | Passage, options: PlayOptions): Player {
  return example.kind === 'dialogue'
    ? dialoguePlayer(engine, example, options)
    : passagePlayer(engine, example, options)
}

/** Turn by turn: each finds the last one's rows in the cache. */
function dialoguePlayer(engine: EngineApi, { steps, turns, seed }: Dialogue, { raw, salt }: PlayOptions): Player {
  const tokenize = remember((prompt: PromptRequest) => engine.tokenize(prompt))
  const tokensOf = (pieces: readonly Piece[], replies: readonly string[]) =>
    tokenize(raw ? { prompt: promptOf(pieces, replies) } : { messages: messagesOf(pieces, replies) })

  /** The step's prompt, and how much of it the policy sees when it shortens. */
  async function promptAt({ pieces, cachePrefix }: Step, treatment: Treatment, replies: readonly string[]) {
    const { compressAt, policy } = treatment
    const tokens = await tokensOf(pieces, replies)
    const seen = compressAt === null || isTypes(policy) ? undefined : cachePrefix[compressAt]
    if (seen === undefined) return { tokens }
    // The prefix alone ends in what the template puts in front of a reply, and its last token may be another.
    const length = commonPrefix(tokens, await tokensOf(pieces.slice(0, seen), replies))
    return length === 0 || length === tokens.length ? { tokens } : { tokens, compressAt: length }
  }

  return async (treatment, signal) => {
    const replies: string[] = []
    const timings: Timings[] = []
    for (const [i, step] of steps.entries()) {
      const reply = await answer(engine, {
        ...(await promptAt(step, treatment, replies)),
        ...cacheOf(treatment),
        salt: salt(treatment),
        sampling: { temperature: 0, seed },
        maxTokens: turns[i]!.maxTokens,
        signal,
      })
      replies.push(reply.text.trim())
      timings.push(reply.timings)
    }
    return { scores: turns.map((turn, i) => score(replies[i]!, turn)), timings, agreement: null }
  }
}

/** The full cache's predictions are made once, for whichever treatment comes first. */
function passagePlayer(engine: EngineApi, passage: Passage, { salt }: PlayOptions): Player {
  const { text, prompt, continuation, seed } = passage
  const tokenize = remember((request: PromptRequest) => engine.tokenize(request))
  const predict = async (treatment: Treatment, signal: AbortSignal) => {
    const tokens = await tokenize({ prompt: text })
    return answer(engine, {
      tokens: tokens.slice(0, prompt),
      forced: tokens.slice(prompt, prompt + continuation),
      ...cacheOf(treatment),
      salt: salt(treatment),
      sampling: { temperature: 0, logprobs: TOPS, seed },
      signal,
    })
  }
  let full: Promise<Answer> | undefined
  return async (treatment, signal) => {
    const wanted = await (full ??= predict(FULL, signal))
    const got = isFull(treatment) ? wanted : await predict(treatment, signal)
    return { scores: [], timings: [got.timings], agreement: agreementOfTops(wanted.tops, got.tops) }
  }
}

function cacheOf(treatment: Treatment): Pick<GenerateRequest, 'policy' | 'budget' | keyof CacheTypesRequest> {
  const { policy, budget } = treatment
  if (isFull(treatment)) return {}
  if (isTypes(policy)) return readTypes(policy)
  return budget === OWN ? { policy } : { policy, budget }
}

interface Answer {
  readonly text: string
  readonly timings: Timings
  /** Of each token, with `sampling.logprobs`. */
  readonly tops: readonly (readonly TokenLogprob[])[]
}

async function answer(engine: EngineApi, request: GenerateRequest): Promise<Answer> {
  const parts: GeneratePart[] = []
  for await (const part of engine.generate(request)) parts.push(part)
  const end = parts.find((part) => part.kind === 'end')!
  const tops = parts.flatMap((part) => (part.kind === 'token' && part.top ? [part.top] : []))
  return { text: parts.map((part) => part.text).join(''), timings: end.timings, tops }
}

/** Tokens that both begin with. */
export function commonPrefix(a: Int32Array, b: Int32Array): number {
  const differ = a.findIndex((token, i) => token !== b[i])
  return differ < 0 ? a.length : differ
}

/** Equal questions are asked once. */
function remember<Q extends object, A>(ask: (question: Q) => Promise<A>): (question: Q) => Promise<A> {
  const answers = new Map<string, Promise<A>>()
  return (question) => {
    const key = JSON.stringify(question)
    const known = answers.get(key) ?? ask(question)
    answers.set(key, known)
    return known
  }
}
