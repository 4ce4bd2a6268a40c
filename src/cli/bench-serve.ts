/** `kvasir bench serve`: load on a server of the OpenAI API. */
import { writeFileSync } from 'node:fs'
import type { Command } from 'commander'
import type { ServeBenchOptions } from '../../bench/serve/bench.ts'
import type { OverheadRow } from '../../bench/serve/overhead.ts'
import type { ServeResult } from '../../bench/serve/result.ts'
import type { Session } from '../../bench/serve/workload.ts'
import { KvasirError } from '../contract/errors.ts'
import { checkFlags, type ServeBenchFlags, serveBenchOptions } from './bench-serve-flags.ts'
import { EXIT } from './failure.ts'
import { interruptible } from './interrupt.ts'
import { addOptions, given } from './options.ts'
import { countBar } from './progress.ts'
import { Table } from './table.ts'

/** vLLM's is 1000: a figure for GPUs. */
const DEFAULT_PROMPTS = 100

export function addBenchServe(bench: Command): void {
  const serve = bench
    .command('serve')
    .description('load on a server of the OpenAI API: latencies and throughput, as vllm bench serve')
    .argument('[flags...]', 'after --: flags of the server that is started')
  addOptions(serve.action(run), serveBenchOptions())
}

async function run(serverFlags: readonly string[], flags: ServeBenchFlags): Promise<void> {
  checkFlags(flags, serverFlags)
  if (flags.overhead) return await interruptible((signal) => runOverhead(flags, signal))
  const { completed } = await interruptible((signal) => runLoad(flags, serverFlags, signal))
  if (completed === 0) process.exitCode = EXIT.failed
}

async function runLoad(
  flags: ServeBenchFlags,
  serverFlags: readonly string[],
  signal: AbortSignal,
): Promise<ServeResult> {
  const { serveBench } = await import('../../bench/serve/bench.ts')
  const sessions = await makeSessions(flags)
  const progress = countBar('requests')
  const options = { ...toOptions(flags, sessions), signal, onNote: toStderr, onProgress: progress.update }
  let result: ServeResult
  try {
    if (flags.baseUrl !== undefined)
      result = await serveBench({ ...options, baseUrl: flags.baseUrl, model: flags.model })
    else {
      const { OwnServer } = await import('../../bench/serve/own-server.ts')
      await using server = await OwnServer.start(flags.model ?? 'house', serverFlags, signal)
      result = await serveBench({ ...options, baseUrl: server.url })
    }
  } finally {
    progress.end()
  }
  const { showResult } = await import('../../bench/serve/result.ts')
  process.stdout.write(flags.json ? `${JSON.stringify(result)}\n` : showResult(result))
  if (flags.saveResult || flags.resultFilename) save(result, flags)
  return result
}

async function runOverhead(flags: ServeBenchFlags, signal: AbortSignal): Promise<void> {
  const { overhead } = await import('../../bench/serve/overhead.ts')
  const table = new Table<OverheadRow>([
    { title: 'streams', width: 7, show: (r) => String(r.streams) },
    { title: 'prompt', width: 6, show: (r) => String(r.prompt_tokens) },
    { title: 'answer', width: 6, show: (r) => String(r.output_tokens) },
    { title: 'HTTP tok/s', width: 10, show: (r) => r.http_tok_s.toFixed(1) },
    { title: 'in process tok/s', width: 16, show: (r) => r.in_process_tok_s.toFixed(1) },
    { title: 'ratio', width: 6, show: (r) => r.ratio.toFixed(3) },
    { title: 'client CPU', width: 10, show: (r) => `${(100 * r.client_cpu_fraction).toFixed(1)} %` },
  ])
  const { shape, type, threads, rounds } = flags
  const { maxConcurrency: streams, randomInputLen: promptTokens, randomOutputLen: outputTokens } = flags
  const options = given({ shape, type, threads, rounds, streams, promptTokens, outputTokens })
  const row = await overhead({ ...options, signal, onNote: toStderr })
  process.stdout.write(flags.json ? `${JSON.stringify({ rows: [row] })}\n` : table.head + table.row(row))
}

async function makeSessions(flags: ServeBenchFlags): Promise<Session[]> {
  const { randomDataset, sharedPrefixDataset, multiTurnDataset } = await import('../../bench/serve/datasets.ts')
  const { customDataset, mooncakeDataset } = await import('../../bench/serve/dataset-files.ts')
  const { seed, numPrompts, conversations, turns, randomPrefixLen: prefixTokens } = flags
  const { randomInputLen: inputTokens = 1024, randomOutputLen: outputTokens = 128 } = flags
  const lengths = { inputTokens, outputTokens, rangeRatio: flags.randomRangeRatio }
  const count = numPrompts ?? DEFAULT_PROMPTS
  const shared = { prefixes: flags.numPrefixes, prefixTokens: flags.prefixLen }
  switch (flags.datasetName) {
    case 'random':
      return randomDataset(count, lengths, prefixTokens, seed)
    case 'shared-prefix':
      return sharedPrefixDataset(count, lengths, shared, seed)
    case 'multi-turn':
      return multiTurnDataset({ conversations, turns, prefixTokens }, lengths, seed)
    case 'mooncake-trace':
      return mooncakeDataset(flags.datasetPath!, flags.timeScale, numPrompts)
    case 'custom':
      return customDataset(flags.datasetPath!, outputTokens, numPrompts)
  }
}

function toOptions(flags: ServeBenchFlags, sessions: readonly Session[]): Omit<ServeBenchOptions, 'baseUrl'> {
  return {
    ...{ sessions, dataset: flags.datasetName, endpoint: flags.endpoint, apiKey: flags.apiKey, seed: flags.seed },
    ...{ rate: flags.requestRate, burstiness: flags.burstiness, maxConcurrency: flags.maxConcurrency ?? null },
    tokenIds: flags.tokenIds ?? false,
    // Answers to real questions end where they end.
    ignoreEos: flags.ignoreEos ?? flags.datasetName !== 'custom',
    extraBody: { ...given({ temperature: flags.temperature }), ...flags.extraBody },
    ...{ timeoutMs: 1000 * flags.timeout, warmups: flags.numWarmups, retry429: flags.retry429 ?? false },
    ...{ metrics: flags.percentileMetrics, percentiles: flags.metricPercentiles, goodput: flags.goodput },
    detailed: flags.saveDetailed ?? false,
  }
}

/** The name is vLLM's. */
function save(result: ServeResult, { resultFilename, maxConcurrency }: ServeBenchFlags): void {
  const concurrency = maxConcurrency === undefined ? '' : `-concurrency${maxConcurrency}`
  const model = result.model_id.split('/').at(-1)
  const name = `${result.backend}-${result.request_rate}qps${concurrency}-${model}-${result.date}.json`
  const file = resultFilename ?? name
  try {
    writeFileSync(file, JSON.stringify(result))
  } catch (cause) {
    throw new KvasirError('GGUF_IO', `--result-filename: ${(cause as Error).message}`, { file }, cause)
  }
  toStderr(`written to ${file}`)
}

function toStderr(note: string): void {
  process.stderr.write(`${note}\n`)
}
