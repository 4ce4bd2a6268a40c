/** From outcomes to the figures of `vllm bench serve`, by its formulas and numpy's. */
import type { Outcome } from './target.ts'

export const METRICS = ['ttft', 'tpot', 'itl', 'e2el'] as const
export type Metric = (typeof METRICS)[number]

/** Most milliseconds that a request may take to be a good one. */
export type Goodput = Readonly<Partial<Record<'ttft' | 'tpot' | 'e2el', number>>>

/** Names are vLLM's, e.g. `mean_ttft_ms`, `p99_itl_ms`. */
export type Statistics = {
  readonly [K in `${'mean' | 'median' | 'std' | `p${number}`}_${Metric}_ms`]?: number
}

/** Rates are per second. */
export interface Throughput {
  readonly completed: number
  readonly failed: number
  readonly total_input_tokens: number
  readonly total_output_tokens: number
  readonly request_throughput: number
  /** Null: nothing was asked for. */
  readonly request_goodput: number | null
  readonly output_throughput: number
  readonly total_token_throughput: number
  /** Pieces of answers in the best second. */
  readonly max_output_tokens_per_s: number
  readonly max_concurrent_requests: number
}

export function throughput(outcomes: readonly Outcome[], durationMs: number, goodput: Goodput): Throughput {
  const done = outcomes.filter(succeeded)
  const seconds = durationMs / 1000
  const input = sum(done.map((o) => o.promptTokens ?? 0))
  const output = sum(done.map(outputTokens))
  const wanted = Object.keys(goodput).length > 0
  return {
    completed: done.length,
    failed: outcomes.length - done.length,
    total_input_tokens: input,
    total_output_tokens: output,
    request_throughput: done.length / seconds,
    request_goodput: wanted ? done.filter((o) => isGood(o, goodput)).length / seconds : null,
    output_throughput: output / seconds,
    total_token_throughput: (input + output) / seconds,
    max_output_tokens_per_s: bestSecond(done),
    max_concurrent_requests: mostAtOnce(done),
  }
}

export function succeeded(o: Outcome): boolean {
  return o.error === null
}

/** Servers that report no usage send a token a piece, most of them. */
export function outputTokens(o: Outcome): number {
  return o.outputTokens ?? o.pieces
}

/** Time per output token after the first, in milliseconds; null for an answer of one. */
export function tpotMs(o: Outcome): number | null {
  const n = outputTokens(o)
  return n > 1 ? (o.latencyMs - o.ttftMs) / (n - 1) : null
}

export function isGood(o: Outcome, { ttft, tpot, e2el }: Goodput): boolean {
  const within = (ms: number, most: number | undefined) => most === undefined || ms <= most
  return within(o.ttftMs, ttft) && within(tpotMs(o) ?? 0, tpot) && within(o.latencyMs, e2el)
}

const VALUES: { readonly [M in Metric]: (o: Outcome) => readonly number[] } = {
  ttft: (o) => [o.ttftMs],
  tpot: (o) => [tpotMs(o)].filter((ms) => ms !== null),
  itl: (o) => o.gapsMs,
  e2el: (o) => [o.latencyMs],
}

export function statistics(
  outcomes: readonly Outcome[],
  metrics: readonly Metric[],
  percentiles: readonly number[],
): Statistics {
  const done = outcomes.filter(succeeded)
  return Object.assign(
    {},
    ...metrics.map((metric) => {
      const values = Float64Array.from(done.flatMap(VALUES[metric])).sort()
      const mean = meanOf(values)
      return {
        [`mean_${metric}_ms`]: mean,
        [`median_${metric}_ms`]: percentile(values, 50),
        [`std_${metric}_ms`]: Math.sqrt(meanOf(values.map((v) => (v - mean) ** 2))),
        ...Object.fromEntries(percentiles.map((p) => [`p${p}_${metric}_ms`, percentile(values, p)])),
      }
    }),
  )
}

/** As numpy: between the two nearest values, linearly. 0 of nothing, as in vLLM. */
export function percentile(sorted: ArrayLike<number>, p: number): number {
  if (sorted.length === 0) return 0
  const at = ((sorted.length - 1) * p) / 100
  const below = sorted[Math.floor(at)]!
  return below + (sorted[Math.ceil(at)]! - below) * (at - Math.floor(at))
}

function meanOf(values: Float64Array): number {
  return values.length === 0 ? 0 : sum(values) / values.length
}

function sum(values: Iterable<number>): number {
  let total = 0
  for (const v of values) total += v
  return total
}

/** A request is there from its start until its last event, that moment not included. */
function mostAtOnce(done: readonly Outcome[]): number {
  const events = done.flatMap((o): [number, number][] => [
    [o.startMs, 1],
    [o.startMs + o.latencyMs, -1],
  ])
  events.sort(([a, x], [b, y]) => a - b || x - y)
  let now = 0
  let most = 0
  for (const [, change] of events) most = Math.max(most, (now += change))
  return most
}

/** Seconds count from the first request. */
function bestSecond(done: readonly Outcome[]): number {
  const start = done.reduce((least, o) => Math.min(least, o.startMs), Number.POSITIVE_INFINITY)
  const perSecond = new Map<number, number>()
  for (const o of done) {
    let ms = o.startMs - start + o.ttftMs
    for (const gap of [0, ...o.gapsMs]) {
      ms += gap
      const second = Math.floor(ms / 1000)
      perSecond.set(second, (perSecond.get(second) ?? 0) + 1)
    }
  }
  return Math.max(0, ...perSecond.values())
}
