/** The result as `vllm bench serve` saves and prints it; what is ours stands under `kvasir`. */
import type { LoadResult } from './load.ts'
import {
  type Goodput,
  METRICS,
  type Metric,
  outputTokens,
  type Statistics,
  statistics,
  succeeded,
  type Throughput,
  throughput,
} from './metrics.ts'

/** What was asked for. */
export interface Settings {
  readonly backend: 'openai' | 'openai-chat'
  readonly model: string
  readonly rate: number
  readonly burstiness: number
  readonly maxConcurrency: number | null
  readonly metrics: readonly Metric[]
  readonly percentiles: readonly number[]
  readonly goodput: Goodput
  /** Also what happened to each request. */
  readonly detailed: boolean
}

/** Of each request, in the order of the workload; times are seconds. */
interface Details {
  readonly input_lens: readonly number[]
  readonly output_lens: readonly number[]
  readonly ttfts: readonly number[]
  /** Gaps between the pieces of each answer. */
  readonly itls: readonly (readonly number[])[]
  readonly latencies: readonly number[]
  /** On the clock of this process. */
  readonly start_times: readonly number[]
  /** From when a request was due until it was sent. */
  readonly queue_times: readonly number[]
  readonly generated_texts: readonly string[]
  /** Empty texts where all went well. */
  readonly errors: readonly string[]
}

export interface OurPart {
  readonly dataset: string
  readonly seed: number
  /** Prompt tokens that the server had cached, by its `usage`. */
  readonly cached_tokens: number
  /** Answers with 429, all of them and those that said when to come back; requests that were sent again count each time. */
  readonly rejected_429: number
  readonly rejected_with_retry_after: number
  /** What requests failed of, the most frequent first. */
  readonly errors: readonly { readonly error: string; readonly count: number }[]
  /** Answers whose tokens the server did not count: their pieces were counted instead. */
  readonly without_usage: number
  /** The generator's own processor time, and as a share of one core. */
  readonly client_cpu_s: number
  readonly client_cpu_fraction: number
  /** The longest that the generator was late with a request. */
  readonly client_lag_ms: number
  readonly notes: readonly string[]
}

export type ServeResult = {
  /** YYYYMMDD-HHMMSS, local time. */
  readonly date: string
  readonly endpoint_type: Settings['backend']
  readonly backend: Settings['backend']
  readonly label: null
  readonly model_id: string
  readonly tokenizer_id: string
  readonly num_prompts: number
  readonly request_rate: number | 'inf'
  readonly burstiness: number
  readonly max_concurrency: number | null
  /** Seconds, from the first request until the last answer. */
  readonly duration: number
  readonly kvasir: OurPart
} & Throughput &
  Statistics &
  Partial<Details>

export function makeResult(
  load: LoadResult,
  settings: Settings,
  ours: Pick<OurPart, 'dataset' | 'seed' | 'notes'>,
  now: Date,
): ServeResult {
  const { backend, model, rate, burstiness, maxConcurrency, metrics, percentiles, goodput, detailed } = settings
  const outcomes = load.results.map((r) => r.outcome)
  return {
    ...{ date: dateName(now), endpoint_type: backend, backend, label: null, model_id: model, tokenizer_id: model },
    num_prompts: outcomes.length,
    request_rate: rate === Number.POSITIVE_INFINITY ? 'inf' : rate,
    ...{ burstiness, max_concurrency: maxConcurrency, duration: load.durationMs / 1000 },
    ...throughput(outcomes, load.durationMs, goodput),
    ...(detailed ? details(load) : {}),
    ...statistics(outcomes, metrics, percentiles),
    kvasir: ourPart(load, ours),
  }
}

function details({ results }: LoadResult): Details {
  const outcomes = results.map((r) => r.outcome)
  return {
    input_lens: outcomes.map((o) => o.promptTokens ?? 0),
    output_lens: outcomes.map((o) => (succeeded(o) ? outputTokens(o) : 0)),
    ttfts: outcomes.map((o) => o.ttftMs / 1000),
    itls: outcomes.map((o) => o.gapsMs.map((ms) => ms / 1000)),
    latencies: outcomes.map((o) => o.latencyMs / 1000),
    start_times: outcomes.map((o) => o.startMs / 1000),
    queue_times: results.map((r) => r.queueMs / 1000),
    generated_texts: outcomes.map((o) => o.text),
    errors: outcomes.map((o) => o.error ?? ''),
  }
}

function ourPart(load: LoadResult, ours: Pick<OurPart, 'dataset' | 'seed' | 'notes'>): OurPart {
  const { results, cpuMs, durationMs, lagMs } = load
  const count = (of: (r: LoadResult['results'][number]) => number) => results.reduce((sum, r) => sum + of(r), 0)
  const errors = new Map<string, number>()
  for (const { outcome } of results)
    if (outcome.error !== null) errors.set(outcome.error, (errors.get(outcome.error) ?? 0) + 1)
  return {
    ...{ dataset: ours.dataset, seed: ours.seed },
    cached_tokens: count((r) => r.outcome.cachedTokens ?? 0),
    rejected_429: count((r) => r.rejections),
    rejected_with_retry_after: count((r) => r.rejectionsWithRetryAfter),
    errors: [...errors].map(([error, n]) => ({ error, count: n })).sort((a, b) => b.count - a.count),
    without_usage: count((r) => Number(succeeded(r.outcome) && r.outcome.outputTokens === null)),
    ...{ client_cpu_s: cpuMs / 1000, client_cpu_fraction: cpuMs / durationMs, client_lag_ms: lagMs },
    notes: ours.notes,
  }
}

/** `20261124-190203` */
export function dateName(now: Date): string {
  const two = (n: number) => String(n).padStart(2, '0')
  const day = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`
  return `${day}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`
}

// the table -----------------------------------------------------------------------------------------------------------

const WIDTH = 50
/** Columns of a line's name. */
const NAME = 40
/** Errors that are shown; all of them are in the JSON. */
const SHOWN_ERRORS = 10

const HEADINGS: { readonly [M in Metric]: string } = {
  ttft: 'Time to First Token',
  tpot: 'Time per Output Token (excl. 1st token)',
  itl: 'Inter-token Latency',
  e2el: 'End-to-end Latency',
}

export function showResult(r: ServeResult): string {
  const { kvasir } = r
  const lines = [
    heading(' Serving Benchmark Result ', '='),
    line('Successful requests:', r.completed),
    line('Failed requests:', r.failed),
    ...(kvasir.rejected_429 > 0 ? [line('Answers with 429:', kvasir.rejected_429)] : []),
    ...(r.max_concurrency === null ? [] : [line('Maximum request concurrency:', r.max_concurrency)]),
    ...(r.request_rate === 'inf' ? [] : [line('Request rate configured (RPS):', fixed(r.request_rate))]),
    line('Benchmark duration (s):', fixed(r.duration)),
    line('Total input tokens:', r.total_input_tokens),
    line('Of these cached:', kvasir.cached_tokens),
    line('Total generated tokens:', r.total_output_tokens),
    line('Request throughput (req/s):', fixed(r.request_throughput)),
    ...(r.request_goodput === null ? [] : [line('Request goodput (req/s):', fixed(r.request_goodput))]),
    line('Output token throughput (tok/s):', fixed(r.output_throughput)),
    line('Peak output token throughput (tok/s):', fixed(r.max_output_tokens_per_s)),
    line('Peak concurrent requests:', fixed(r.max_concurrent_requests)),
    line('Total token throughput (tok/s):', fixed(r.total_token_throughput)),
    line('Generator CPU (% of a core):', fixed(100 * kvasir.client_cpu_fraction)),
    line('Generator lag, longest (ms):', fixed(kvasir.client_lag_ms)),
    ...METRICS.flatMap((metric) => metricLines(r, metric)),
    '='.repeat(WIDTH),
    ...kvasir.notes.map((note) => `note: ${note}`),
    ...kvasir.errors.slice(0, SHOWN_ERRORS).map(({ error, count }) => `failed, ${count} times: ${error}`),
  ]
  return `${lines.join('\n')}\n`
}

/** None when the metric was not asked for. */
function metricLines(r: ServeResult, metric: Metric): string[] {
  const suffix = `_${metric}_ms`
  const values = Object.entries(r).filter(([name]) => name.endsWith(suffix) && !name.startsWith('std'))
  if (values.length === 0) return []
  const name = (key: string) => key.slice(0, -suffix.length).replace(/^./, (c) => c.toUpperCase())
  return [
    heading(HEADINGS[metric], '-'),
    ...values.map(([key, value]) => line(`${name(key)} ${metric.toUpperCase()} (ms):`, fixed(Number(value)))),
  ]
}

function heading(text: string, fill: string): string {
  const left = Math.floor((WIDTH - text.length) / 2)
  return text.padStart(text.length + left, fill).padEnd(WIDTH, fill)
}

function line(name: string, value: string | number): string {
  return `${name.padEnd(NAME)} ${value}`
}

function fixed(n: number): string {
  return n.toFixed(2)
}
