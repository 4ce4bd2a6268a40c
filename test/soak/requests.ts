/** What the soak asks, and how an answer to it is judged. */
import { Random } from '../../bench/random-model.ts'
import { KvasirError } from '../../src/contract/errors.ts'
import type { EngineApi } from '../../src/engine/api.ts'
import type { GenerateRequest } from '../../src/engine/request.ts'
import { houseExample, TASKS } from '../fixtures/house-tasks.ts'

/**
 * Kernels for one row and for many round differently: where the two best tokens are nearer than this many nats, either may
 * win (src/engine/loop.test.ts). Answers are compared up to there.
 */
const NEAR_TIE = 0.35
const MOST_TOKENS = 48

/** A prompt, and the tokens that are sure to come. */
export interface Known {
  readonly prompt: Pick<GenerateRequest, 'messages' | 'prompt'>
  readonly right: readonly number[]
}

/** Tokens that a word takes of text that makes no sense. */
const WORD_TOKENS = 1.6
const words = 'ship harbour evening morning hamster drums silver garden winter letter orange river'.split(' ')

/** Prompts of about 8 to 1500 tokens, asked one at a time of an engine that has nothing cached. */
export async function knownAnswers(engine: EngineApi, count: number, seed: number): Promise<Known[]> {
  const r = new Random(seed)
  const known: Known[] = []
  for (let i = 0; i < count; i++) {
    const length = Math.round(8 * (1500 / 8) ** (i / (count - 1)))
    const prompt =
      length < 80 || i % 4 === 0
        ? {
            prompt: Array.from(
              { length: length / WORD_TOKENS },
              () => words[Math.floor(r.uniform() * words.length)],
            ).join(' '),
          }
        : { messages: houseExample(TASKS[i % TASKS.length]!, length, seed + i).messages }
    await engine.clearCache()
    const right: number[] = []
    const sampling = { temperature: 0, logprobs: 2 }
    for await (const part of engine.generate({ ...prompt, sampling, maxTokens: MOST_TOKENS })) {
      if (part.kind === 'end' || part.top![0]!.logprob - part.top![1]!.logprob < NEAR_TIE) break
      right.push(part.token)
    }
    known.push({ prompt, right })
  }
  await engine.clearCache()
  return known
}

/** A request of the load, with what its caller is going to do. */
export interface Plan {
  readonly known: Known
  readonly maxTokens: number
  readonly samples: number
  readonly tenant: string
  readonly priority: number
  readonly deadlineMs: number | null
  /** Aborts after this many milliseconds. */
  readonly abortMs: number | null
  /** Stops reading after this many tokens. */
  readonly leaveAfter: number | null
  /** Waits as long before each part. */
  readonly readMs: number
}

export function plan(r: Random, known: readonly Known[], withCallers: boolean): Plan {
  const chance = (p: number) => r.uniform() < p
  const upTo = (n: number) => 1 + Math.floor(r.uniform() * n)
  return {
    known: known[Math.floor(r.uniform() * known.length)]!,
    maxTokens: upTo(MOST_TOKENS),
    samples: chance(0.1) ? 1 + upTo(3) : 1,
    tenant: `tenant ${upTo(4)}`,
    priority: upTo(3) - 2,
    deadlineMs: withCallers && chance(0.15) ? 20 * upTo(200) : null,
    abortMs: withCallers && chance(0.1) ? 4 * upTo(250) : null,
    leaveAfter: withCallers && chance(0.05) ? upTo(10) : null,
    readMs: withCallers && chance(0.05) ? upTo(20) : 0,
  }
}

/** How a request ended: `complete`, `left` (its caller stopped reading), an error's code, or `wrong: …`. */
export async function ask(engine: EngineApi, p: Plan): Promise<string> {
  const signal = p.abortMs === null ? null : AbortSignal.timeout(p.abortMs)
  const samples = Array.from({ length: p.samples }, () => ({ tokens: [] as number[], ended: '' }))
  let parts = 0
  try {
    const answer = engine.generate({
      ...p.known.prompt,
      ...{ sampling: { temperature: 0 }, maxTokens: p.maxTokens, samples: p.samples },
      ...{ tenant: p.tenant, priority: p.priority },
      ...(p.deadlineMs === null ? {} : { deadlineMs: p.deadlineMs }),
      ...(signal ? { signal } : {}),
    })
    for await (const part of answer) {
      const s = samples[part.sample ?? 0]!
      if (s.ended) return `wrong: a ${part.kind} after the end`
      if (part.kind === 'token') s.tokens.push(part.token)
      else s.ended = part.reason.kind
      if (++parts === p.leaveAfter) return 'left'
      if (p.readMs > 0) await new Promise((resolve) => setTimeout(resolve, p.readMs))
    }
  } catch (error) {
    return judgeError(error, p)
  }
  for (const { tokens, ended } of samples) {
    if (!ended) return 'wrong: an answer without an end'
    const sure = Math.min(p.known.right.length, p.maxTokens)
    if (tokens.slice(0, sure).join() !== p.known.right.slice(0, sure).join())
      return `wrong: tokens ${tokens} for ${p.known.right}`
    if (ended === 'max-tokens' && tokens.length !== p.maxTokens)
      return `wrong: ${tokens.length} of ${p.maxTokens} tokens`
  }
  return 'complete'
}

/** The code, if this request may end so and is told what it needs. */
function judgeError(error: unknown, p: Plan): string {
  if (!(error instanceof KvasirError)) return `wrong: ${error}`
  const { code, details } = error
  const isDue =
    (code === 'ABORTED' && p.abortMs !== null) ||
    (code === 'DEADLINE' && p.deadlineMs !== null && error.retry) ||
    (code === 'QUEUE_FULL' && error.retry && (details['retryAfterMs'] as number) > 0) ||
    (code === 'KV_BUDGET' && error.retry && details['pages'] !== undefined) ||
    (code === 'ENGINE_CRASHED' && error.retry && typeof details['retrySafe'] === 'boolean')
  return isDue ? code : `wrong: ${error.message}`
}
