/**
 * `kvasir bench speed`: prefill and decode against libllama on the same file, in one process, with as many threads, taking
 * turns. What counts is the ratio within a pair of neighbouring runs: the machine's mood falls on both. Medians.
 * Kvasir chooses its thread count per step; libllama gets all threads or one, whichever is faster for it.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CacheType } from '../src/cache/arena.ts'
import { KvStore } from '../src/cache/store.ts'
import { modelPath } from '../src/engine/options.ts'
import { Sequence } from '../src/engine/sequence.ts'
import type { LoweringName } from '../src/executor/lower/lowering.ts'
import { Executor } from '../src/executor/run.ts'
import { storeShape } from '../src/executor/store-shape.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { loadNative } from '../src/ggml/library.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import { Model } from '../src/model/model.ts'
import { argmax } from '../src/model/sampling/candidates.ts'
import { randomModelFile } from './cache-folder.ts'
import { Peer } from './peer.ts'
import { Random, type RandomModel } from './random-model.ts'

export interface SpeedRow {
  readonly model: string
  readonly metric: 'prefill' | 'decode'
  /** Prefill: tokens of the prompt. Decode: tokens in the cache before. */
  readonly context: number
  readonly ours_tok_s: number
  readonly peer_tok_s: number
  /** Median over pairs of runs of their time over ours: above 1, Kvasir is faster. */
  readonly ratio: number
  /** Share of our time that is not spent inside ggml's graph computation. */
  readonly outside_compute_fraction: number
}

type Shape = Omit<RandomModel, 'name' | 'type'>

export const SPEED_SHAPES: Readonly<Record<string, Shape>> = {
  'qwen2.5-0.5b': {
    architecture: 'qwen2',
    layers: 24,
    width: 896,
    heads: 14,
    kvHeads: 2,
    headDim: 64,
    ffWidth: 4864,
    vocab: 151936,
    tied: true,
  },
  'llama-3.2-1b': {
    architecture: 'llama',
    layers: 16,
    width: 2048,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    ffWidth: 8192,
    vocab: 128256,
    tied: true,
    optional: ['rope_freqs.weight'],
  },
}

export const SPEED_TYPES: readonly GgmlType[] = ['q8_0', 'q4_0']

/** Tokens of one decode sample. */
const DECODE_TOKENS = 32
const CHUNK = 512
/** Runs that take longer are not tried with fewer threads, and a few pairs of them are enough. Milliseconds. */
const LONG_MS = 2000
const LONG_ROUNDS = 3
const ROUNDS = 7
/** Single runs of less than this are noise; many of them are not. */
const SHORT_MS = 500
const SHORT_ROUNDS = 21
/** Before each run: the other engine's idle workers spin for about 2 ms before they sleep. */
const SETTLE_MS = 20

export interface SpeedOptions {
  /** `house` or names of {@link SPEED_SHAPES}. Default: all. */
  readonly shapes?: readonly string[]
  readonly types?: readonly GgmlType[]
  /** Default 512 and 4096. */
  readonly contexts?: readonly number[]
  readonly threads?: number
  readonly lowering?: LoweringName
  readonly cacheType?: CacheType
  /** Pairs of runs per figure. Default 7; 3 for runs of more than 2 s, 21 for runs of less than half a second. */
  readonly rounds?: number
  readonly onRow?: (row: SpeedRow) => void
  readonly onNote?: (note: string) => void
}

export async function speed(options: SpeedOptions = {}): Promise<SpeedRow[]> {
  const rows: SpeedRow[] = []
  const report = (row: SpeedRow) => {
    rows.push(row)
    options.onRow?.(row)
  }
  for (const name of options.shapes ?? ['house', ...Object.keys(SPEED_SHAPES)]) {
    if (name === 'house') {
      await race(modelPath('house'), 'house-5m q8_0', options, report)
      continue
    }
    const shape = SPEED_SHAPES[name]
    if (!shape)
      throw new RangeError(`no speed model "${name}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
    for (const type of options.types ?? SPEED_TYPES) {
      const file = await randomModelFile({ ...shape, name: `speed-${name}`, type }, (path) =>
        options.onNote?.(`writing ${path} (once)`),
      )
      await race(file, `${name} ${type}`, options, report)
    }
  }
  return rows
}

async function race(path: string, model: string, options: SpeedOptions, report: (row: SpeedRow) => void) {
  const threads = options.threads ?? availableParallelism()
  const lowering = options.lowering ?? 'auto'
  const type = options.cacheType ?? 'f16'
  const contexts = options.contexts ?? [512, 4096]
  const contextLength = Math.max(...contexts) + 2 * DECODE_TOKENS
  await loadNative()
  using ours = await Model.load(path, () => ({ device: cpuDevice(), contextLength }))
  const { vocab } = ours.config
  const shape = { cells: contextLength, keyType: type, valueType: type, lowering }
  using store = new KvStore(storeShape(ours.config, shape, ours.device), ours.device)
  using executor = new Executor(ours, store, { threads, lowering })
  using sequence = new Sequence(executor, contextLength)
  const size = Math.ceil(contextLength / 256) * 256
  using peer = await Peer.load(path, { contextLength: size, chunk: CHUNK, threads, keyType: type, valueType: type })
  const random = new Random(11)
  const tokens = (n: number) => Int32Array.from({ length: n }, () => 259 + Math.floor(random.uniform() * (vocab - 259)))

  for (const context of contexts) {
    const prompt = tokens(context)
    const prefill: Contest = {
      ours: async () => {
        sequence.truncate(0)
        sequence.computeMs = 0
        await sequence.append(prompt, CHUNK)
        return sequence.computeMs
      },
      peer: () => {
        peer.clear()
        peer.eval(prompt)
      },
    }
    report(await compare(peer, threads, prefill, context, options.rounds, { model, metric: 'prefill', context }))

    const decode: Contest = {
      ours: async () => {
        sequence.truncate(context)
        sequence.computeMs = 0
        let next = prompt[0]!
        for (let i = 0; i < DECODE_TOKENS; i++) next = argmax(await sequence.append(Int32Array.of(next), CHUNK))
        return sequence.computeMs
      },
      peer: () => {
        peer.truncate(context)
        let next = prompt[0]!
        for (let i = 0; i < DECODE_TOKENS; i++) next = argmax(peer.eval(Int32Array.of(next)))
      },
    }
    report(await compare(peer, threads, decode, DECODE_TOKENS, options.rounds, { model, metric: 'decode', context }))
  }
}

interface Contest {
  /** Returns the milliseconds spent inside ggml. */
  readonly ours: () => Promise<number>
  readonly peer: () => void
}

async function compare(
  peer: Peer,
  threads: number,
  contest: Contest,
  tokens: number,
  rounds: number | undefined,
  facts: Pick<SpeedRow, 'model' | 'metric' | 'context'>,
): Promise<SpeedRow> {
  const oursMs: number[] = []
  const peerMs: number[] = []
  const outside: number[] = []
  const runOurs = async () => {
    await sleep(SETTLE_MS)
    const start = performance.now()
    const computeMs = await contest.ours()
    const ms = performance.now() - start
    oursMs.push(ms)
    outside.push(1 - computeMs / ms)
  }
  const runPeer = async () => {
    await sleep(SETTLE_MS)
    const start = performance.now()
    contest.peer()
    peerMs.push(performance.now() - start)
  }
  // First runs do not count: caches, page faults, graphs, thread counts. Then in turns, the order changing pair by pair.
  await runOurs()
  await runPeer()
  const isLong = peerMs[0]! > LONG_MS
  if (!isLong) await giveBestThreads(peer, threads, runPeer, peerMs)
  if (!isLong) await runOurs()
  for (const list of [oursMs, peerMs, outside]) list.length = 0
  const pairs = rounds ?? (isLong ? LONG_ROUNDS : peerMs.at(-1)! < SHORT_MS ? SHORT_ROUNDS : ROUNDS)
  for (let i = 0; i < pairs; i++) {
    if (i % 2) await runPeer()
    await runOurs()
    if (i % 2 === 0) await runPeer()
  }
  return {
    ...facts,
    ours_tok_s: (1000 * tokens) / median(oursMs),
    peer_tok_s: (1000 * tokens) / median(peerMs),
    ratio: median(oursMs.map((ms, i) => peerMs[i]! / ms)),
    outside_compute_fraction: median(outside),
  }
}

/** Long runs gain from every thread; for short ones libllama gets all or one, whichever is faster for it. */
async function giveBestThreads(peer: Peer, most: number, run: () => Promise<void>, times: number[]): Promise<void> {
  let best = { threads: most, ms: Number.POSITIVE_INFINITY }
  for (const threads of new Set([most, 1])) {
    peer.useThreads(threads)
    times.length = 0
    for (let i = 0; i < 3; i++) await run()
    const ms = Math.min(...times)
    if (ms < best.ms) best = { threads, ms }
  }
  peer.useThreads(best.threads)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
