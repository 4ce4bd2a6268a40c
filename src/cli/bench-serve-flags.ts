/** The flags of `kvasir bench serve`: those of `vllm bench serve`, as far as they mean something here, and what is checked of them. */
import { InvalidArgumentError, Option } from 'commander'
import { type Goodput, METRICS, type Metric } from '../../bench/serve/metrics.ts'
import { KvasirError } from '../contract/errors.ts'
import { GGML_TYPES, type GgmlType } from '../ggml/types.ts'
import { collectList, jsonOption, threadsOption, toNumber } from './options.ts'

const DATASETS = ['random', 'shared-prefix', 'multi-turn', 'mooncake-trace', 'custom'] as const

export interface ServeBenchFlags {
  readonly baseUrl?: string
  readonly endpoint: string
  readonly model?: string
  readonly apiKey?: string
  readonly datasetName: (typeof DATASETS)[number]
  readonly datasetPath?: string
  readonly numPrompts?: number
  readonly randomInputLen?: number
  readonly randomOutputLen?: number
  readonly randomRangeRatio: number
  readonly randomPrefixLen: number
  readonly numPrefixes: number
  readonly prefixLen: number
  readonly conversations: number
  readonly turns: number
  readonly timeScale: number
  readonly requestRate: number
  readonly burstiness: number
  readonly maxConcurrency?: number
  readonly seed: number
  readonly tokenIds?: true
  readonly ignoreEos?: boolean
  readonly temperature?: number
  readonly extraBody?: Readonly<Record<string, unknown>>
  readonly timeout: number
  readonly retry429?: true
  readonly numWarmups: number
  readonly percentileMetrics: readonly Metric[]
  readonly metricPercentiles: readonly number[]
  readonly goodput: Goodput
  readonly saveResult?: true
  readonly saveDetailed?: true
  readonly resultFilename?: string
  readonly json?: true
  readonly overhead?: true
  readonly shape: string
  readonly type: GgmlType
  readonly rounds: number
  readonly threads?: number
}

const number = (flags: string, help: string, fallback?: number) => {
  const option = new Option(flags, help).argParser(toNumber)
  return fallback === undefined ? option : option.default(fallback)
}

/** Where requests go. */
const targetOptions = (): Option[] => [
  new Option('--base-url <url>', 'server to measure (default: one of ours is started, with the flags after --)'),
  new Option('--endpoint <path>', '/v1/completions or /v1/chat/completions').default('/v1/completions'),
  new Option(
    '-m, --model <name>',
    'name in requests (default: the first that the server lists); of a server of ours the model, house by default',
  ),
  new Option('--api-key <key>', 'sent as a bearer token').env('OPENAI_API_KEY'),
]

/** What is asked. */
const datasetOptions = (): Option[] => [
  new Option('--dataset-name <name>', 'what is asked').choices(DATASETS).default('random'),
  new Option('--dataset-path <file>', 'JSON lines, for mooncake-trace and custom'),
  number('--num-prompts <n>', 'requests (default: 100; of a file all; of multi-turn conversations times turns)'),
  number('--random-input-len <n>', 'tokens of a prompt, beside its prefix (default: 1024; with --overhead 128)'),
  number('--random-output-len <n>', 'tokens of an answer (default: 128)'),
  number('--random-range-ratio <r>', 'both are drawn from n (1 - r) to n (1 + r)', 0),
  number('--random-prefix-len <n>', 'tokens that all prompts of random and multi-turn begin with', 0),
  number('--num-prefixes <n>', 'of shared-prefix', 10),
  number('--prefix-len <n>', 'tokens of each, of shared-prefix', 256),
  number('--conversations <n>', 'of multi-turn', 8),
  number('--turns <n>', 'questions of each, of multi-turn', 4),
  number('--time-scale <x>', 'times of mooncake-trace are multiplied by it: 0.5 is twice as fast', 1),
  number('--seed <n>', 'of prompts and arrivals', 0),
]

/** How it is asked. */
const trafficOptions = (): Option[] => [
  new Option('--request-rate <n>', 'requests per second; inf: all at once')
    .argParser(toRate)
    .default(Number.POSITIVE_INFINITY, 'inf'),
  new Option('--burstiness <x>', 'shape of the gamma distribution of gaps: 1 is Poisson, less is burstier')
    .argParser(toRate)
    .default(1),
  number('--max-concurrency <n>', 'most requests under way at once (default: no limit)'),
  new Option('--token-ids', 'send prompts of /v1/completions as tokens instead of text'),
  new Option('--ignore-eos', 'send ignore_eos: answers go on to their length (default: but for custom)'),
  new Option('--no-ignore-eos', "do not: for servers that refuse fields that are not OpenAI's"),
  number('--temperature <n>', 'sent with each request (default: what the server has)'),
  new Option('--extra-body <json>', 'an object: more fields of each request').argParser(toObject),
  number('--timeout <seconds>', 'a request fails after so long a silence', 21_600),
  new Option('--retry-429', 'when refused with 429, wait as Retry-After says and send again'),
  number('--num-warmups <n>', 'requests before, which do not count', 0),
]

/** What is told. */
const resultOptions = (): Option[] => [
  new Option('--percentile-metrics <names>', `of ${METRICS.join(', ')}; several with commas`)
    .argParser(toMetrics)
    .default(METRICS, METRICS.join(',')),
  new Option('--metric-percentiles <list>', 'several with commas')
    .argParser(toPercentiles)
    .default([50, 90, 95, 99], '50,90,95,99'),
  new Option('--goodput <name:ms...>', 'a request is good within these: ttft:MS tpot:MS e2el:MS')
    .argParser(toGoodput)
    .default({}, 'none'),
  new Option('--save-result', 'write the result to a file'),
  new Option('--save-detailed', 'with times, texts and errors of each request'),
  new Option('--result-filename <file>', '(default: BACKEND-RATEqps-MODEL-DATE.json)'),
  jsonOption('print the result as one object instead of a table'),
]

const overheadOptions = (): Option[] => [
  new Option('--overhead', 'instead: what HTTP costs, a server of ours against the engine in this process'),
  new Option('--shape <name>', 'with --overhead: house, or a shape of bench/speed.ts').default('house'),
  new Option('--type <name>', 'with --overhead: quantisation of random weights').default('q8_0'),
  number('--rounds <n>', 'with --overhead: runs of each', 7),
  threadsOption(),
]

export const serveBenchOptions = (): Option[] => [
  ...targetOptions(),
  ...datasetOptions(),
  ...trafficOptions(),
  ...resultOptions(),
  ...overheadOptions(),
]

// checks --------------------------------------------------------------------------------------------------------------

/** Flag, and the least that it may be; these are whole numbers. */
const WHOLE = {
  numPrompts: ['--num-prompts', 1],
  randomInputLen: ['--random-input-len', 1],
  randomOutputLen: ['--random-output-len', 1],
  randomPrefixLen: ['--random-prefix-len', 0],
  numPrefixes: ['--num-prefixes', 1],
  prefixLen: ['--prefix-len', 0],
  conversations: ['--conversations', 1],
  turns: ['--turns', 1],
  maxConcurrency: ['--max-concurrency', 1],
  numWarmups: ['--num-warmups', 0],
  rounds: ['--rounds', 1],
} as const satisfies { readonly [K in keyof ServeBenchFlags]?: readonly [string, number] }

/** @throws KvasirError INVALID_ARGUMENT */
export function checkFlags(flags: ServeBenchFlags, serverFlags: readonly string[]): void {
  for (const [field, [flag, least]] of Object.entries(WHOLE)) {
    const value = flags[field as keyof typeof WHOLE]
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= least))
      throw invalid(flag, `is ${value}; it must be a whole number from ${least} up`)
  }
  const { datasetName, datasetPath, randomRangeRatio, requestRate, timeScale, timeout, type } = flags
  if (!(type in GGML_TYPES)) throw invalid('--type', `is "${type}"; there are ${Object.keys(GGML_TYPES).join(', ')}`)
  const isFile = datasetName === 'mooncake-trace' || datasetName === 'custom'
  if (!(randomRangeRatio >= 0 && randomRangeRatio < 1))
    throw invalid('--random-range-ratio', `is ${randomRangeRatio}; it must be from 0 to less than 1`)
  if (!(timeScale >= 0)) throw invalid('--time-scale', `is ${timeScale}; it must be 0 or more`)
  if (!(timeout > 0)) throw invalid('--timeout', `is ${timeout}; it must be more than 0`)
  if (isFile && datasetPath === undefined) throw invalid('--dataset-path', `is needed for ${datasetName}`)
  if (!isFile && datasetPath !== undefined) throw invalid('--dataset-path', `is of no use for ${datasetName}`)
  if (datasetName === 'mooncake-trace' && requestRate !== Number.POSITIVE_INFINITY)
    throw invalid(
      '--request-rate',
      'is of no use for mooncake-trace, which says itself when requests come; --time-scale is',
    )
  if (flags.overhead && (flags.baseUrl !== undefined || serverFlags.length > 0))
    throw invalid('--overhead', 'starts a server of its own, with the flags that it needs')
  if (serverFlags.length > 0 && flags.baseUrl !== undefined)
    throw invalid('--base-url', `no server is started, so what is "${serverFlags.join(' ')}" for?`)
}

function invalid(flag: string, what: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', `${flag} ${what}`, { field: flag })
}

/** More than 0; `inf` is infinite, as in Python. */
function toRate(text: string): number {
  const n = /^inf(inity)?$/i.test(text) ? Number.POSITIVE_INFINITY : toNumber(text)
  if (!(n > 0)) throw new InvalidArgumentError('It must be more than 0, or inf.')
  return n
}

function toMetrics(text: string): Metric[] {
  return collectList(text, undefined).map((name) => {
    const metric = METRICS.find((m) => m === name)
    if (!metric) throw new InvalidArgumentError(`There is no metric "${name}".`)
    return metric
  })
}

function toPercentiles(text: string): number[] {
  return collectList(text, undefined).map((p) => {
    const n = toNumber(p)
    if (n < 0 || n > 100) throw new InvalidArgumentError('Percentiles are from 0 to 100.')
    return n
  })
}

function toGoodput(text: string, before: Goodput): Goodput {
  const [, name, ms] = /^(ttft|tpot|e2el):(.+)$/.exec(text) ?? []
  if (!name || !(Number(ms) >= 0)) throw new InvalidArgumentError('It must be like ttft:200, tpot:50 or e2el:5000.')
  return { ...before, [name]: Number(ms) }
}

function toObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  } catch {
    // As wrong as what is JSON but no object.
  }
  throw new InvalidArgumentError('It must be a JSON object.')
}
