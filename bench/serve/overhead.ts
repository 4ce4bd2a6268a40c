/**
 * `kvasir bench serve --overhead`: what HTTP and its processes cost. The same requests go to `kvasir serve` over HTTP and to an
 * engine in this process, both with the same model, threads and context; they take turns, each round with prompts that neither
 * has seen. What counts is the ratio within a round: above 1, HTTP was the faster, which is noise.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { KvasirError } from '../../src/contract/errors.ts'
import { LocalEngine } from '../../src/engine/local.ts'
import { modelPath } from '../../src/engine/options.ts'
import type { GgmlType } from '../../src/ggml/types.ts'
import { randomTokens, withoutEnd } from '../cache.ts'
import { randomModelFile } from '../cache-folder.ts'
import { median, SPEED_SHAPES } from '../speed.ts'
import { OwnServer } from './own-server.ts'
import { Target } from './target.ts'

export interface OverheadRow {
  readonly streams: number
  readonly prompt_tokens: number
  readonly output_tokens: number
  /** Generated tokens per second, all streams together, from the first request until the last answer. Medians. */
  readonly http_tok_s: number
  readonly in_process_tok_s: number
  /** Median over rounds of HTTP's speed over the engine's. */
  readonly ratio: number
  /** Processor time of this process while it read the answers over HTTP, as a share of one core. */
  readonly client_cpu_fraction: number
}

export interface OverheadOptions {
  /** `house` or a name of SPEED_SHAPES. Default house. */
  readonly shape?: string
  readonly type?: GgmlType
  /** Default 8. */
  readonly streams?: number
  /** Default 128. */
  readonly promptTokens?: number
  /** Default 128. */
  readonly outputTokens?: number
  readonly threads?: number
  /** Default 7. */
  readonly rounds?: number
  readonly signal?: AbortSignal
  readonly onNote?: (note: string) => void
}

/** Before each run: the other engine's idle workers spin for about 2 ms before they sleep. */
const SETTLE_MS = 50
/** First rounds that do not count: page faults, graphs, connections. */
const WARM_UPS = 1

interface Run {
  readonly tokensPerSecond: number
  readonly cpuFraction: number
}

type Bias = ReadonlyMap<number, number>
type Ask = (prompt: Int32Array) => Promise<number>

export async function overhead(options: OverheadOptions = {}): Promise<OverheadRow> {
  const { streams = 8, promptTokens = 128, outputTokens = 128, rounds = 7, onNote, signal } = options
  const threads = options.threads ?? availableParallelism()
  // There is always memory for one context: one that holds all streams at once, so that nothing is preempted.
  const contextLength = streams * Math.ceil((promptTokens + outputTokens + 1) / 256) * 256
  const path = await modelFile(options)
  await using engine = await LocalEngine.load(path, { threads, contextLength })
  const flags = ['--threads', String(threads), '--context', String(contextLength)]
  await using server = await OwnServer.start(path, flags, signal)
  using target = new Target({ baseUrl: server.url })
  // Both are forbidden the same tokens: those that would end an answer.
  const noEnd = withoutEnd(engine)
  const overHttp = askServer(target, await target.firstModel(), noEnd, outputTokens, signal)
  const inProcess = askEngine(engine, noEnd, outputTokens, signal)
  const http: Run[] = []
  const local: Run[] = []
  for (let round = 0; round < WARM_UPS + rounds; round++) {
    const seeds = Array.from({ length: streams }, (_, i) => round * streams + i + 1)
    const prompts = seeds.map((seed) => randomTokens(engine, promptTokens, seed))
    const runHttp = async () => http.push(await measure(overHttp, prompts, outputTokens))
    if (round % 2) await runHttp()
    local.push(await measure(inProcess, prompts, outputTokens))
    if (round % 2 === 0) await runHttp()
    onNote?.(`round ${round + 1}: ${show(http.at(-1)!)} over HTTP, ${show(local.at(-1)!)} in process`)
  }
  const [h, l] = [http.slice(WARM_UPS), local.slice(WARM_UPS)]
  return {
    ...{ streams, prompt_tokens: promptTokens, output_tokens: outputTokens },
    http_tok_s: median(h.map((r) => r.tokensPerSecond)),
    in_process_tok_s: median(l.map((r) => r.tokensPerSecond)),
    ratio: median(h.map((r, i) => r.tokensPerSecond / l[i]!.tokensPerSecond)),
    client_cpu_fraction: median(h.map((r) => r.cpuFraction)),
  }
}

/** Generated tokens of one answer. */
function askServer(target: Target, model: string, noEnd: Bias, outputTokens: number, signal?: AbortSignal): Ask {
  // The API's -100 forbids a token.
  const bias = Object.fromEntries([...noEnd.keys()].map((token) => [token, -100]))
  const body = { model, max_tokens: outputTokens, temperature: 0, logit_bias: bias, stream: true }
  return async (prompt) => {
    const request = { ...body, prompt: [...prompt], stream_options: { include_usage: true } }
    const { error, outputTokens: generated } = await target.stream('/v1/completions', request, signal)
    if (signal?.aborted) throw new KvasirError('ABORTED', 'the comparison was stopped before its end')
    if (error !== null) throw new Error(`a request over HTTP failed: ${error}`)
    return generated ?? 0
  }
}

function askEngine(engine: LocalEngine, noEnd: Bias, maxTokens: number, signal?: AbortSignal): Ask {
  const sampling = { temperature: 0, logitBias: noEnd }
  return async (tokens) => {
    let generated = 0
    for await (const part of engine.generate({ tokens, maxTokens, sampling, ...(signal ? { signal } : {}) }))
      if (part.kind === 'end') generated = part.timings.generated_tokens
    return generated
  }
}

/** All prompts at once. @throws Error when an answer is shorter than the others: the work would not be the same */
async function measure(ask: Ask, prompts: readonly Int32Array[], outputTokens: number): Promise<Run> {
  await sleep(SETTLE_MS)
  const cpu = process.cpuUsage()
  const start = performance.now()
  const tokens = await Promise.all(prompts.map(ask))
  const ms = performance.now() - start
  const { user, system } = process.cpuUsage(cpu)
  if (tokens.some((n) => n !== outputTokens))
    throw new Error(`answers of ${tokens.join(', ')} tokens, where all should have ${outputTokens}`)
  return {
    tokensPerSecond: (1000 * prompts.length * outputTokens) / ms,
    cpuFraction: (user + system) / 1000 / ms,
  }
}

function show({ tokensPerSecond }: Run): string {
  return `${tokensPerSecond.toFixed(1)} tok/s`
}

async function modelFile({ shape = 'house', type = 'q8_0', onNote }: OverheadOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = SPEED_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
  return await randomModelFile({ ...known, name: `speed-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}
