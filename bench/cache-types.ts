/**
 * `kvasir bench cache-types`: decode and prefill speed by the types that keys and values are cached in, against libllama with the
 * same `type_k` and `type_v`, and what a token takes in the cache.
 *
 *   prefill   a chunk of 512 rows, the last of `context`
 *   decode    steps behind `context` rows
 *
 * One process, as many threads, taking turns; what counts is the ratio within a pair of neighbouring runs. Contexts are zeros,
 * not computed, on both sides.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CacheType } from '../src/cache/arena.ts'
import { KvStore } from '../src/cache/store.ts'
import { KvasirError } from '../src/contract/errors.ts'
import { modelPath } from '../src/engine/options.ts'
import { Sequence } from '../src/engine/sequence.ts'
import type { LoweringName } from '../src/executor/lower/lowering.ts'
import { Executor } from '../src/executor/run.ts'
import { storeShape } from '../src/executor/store-shape.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { loadNative } from '../src/ggml/library.ts'
import { type GgmlType, rowBytes } from '../src/ggml/types.ts'
import { Model } from '../src/model/model.ts'
import { argmax } from '../src/model/sampling/candidates.ts'
import { randomModelFile } from './cache-folder.ts'
import { Peer, type PeerOptions } from './peer.ts'
import { Random } from './random-model.ts'
import { median, SPEED_SHAPES } from './speed.ts'

export interface CacheTypesRow {
  readonly type_k: CacheType
  readonly type_v: CacheType
  readonly metric: 'prefill' | 'decode'
  /** Tokens in the cache: behind a prefill's chunk, before a decode step. */
  readonly context: number
  readonly ours_tok_s: number
  /** null: libllama does not take these types. */
  readonly peer_tok_s: number | null
  /** Median over pairs of runs of libllama's time over ours: above 1, Kvasir is faster. */
  readonly ratio: number | null
  /** Of keys and values in all layers. */
  readonly kv_bytes_per_token: number
}

export interface TypePair {
  readonly keys: CacheType
  readonly values: CacheType
}

export interface CacheTypesOptions {
  /** `house` or a name of SPEED_SHAPES. Default qwen2.5-0.5b. */
  readonly shape?: string
  /** Of the weights. Default q8_0. */
  readonly type?: GgmlType
  /** Default {@link DEFAULT_PAIRS}. */
  readonly pairs?: readonly TypePair[]
  /** Default 2048, 8192, 32768. */
  readonly contexts?: readonly number[]
  readonly threads?: number
  readonly lowering?: LoweringName
  /** Pairs of runs per figure. Default 5; 3 for runs of more than 2 s, 21 for runs of less than 0.2 s. */
  readonly rounds?: number
  readonly onRow?: (row: CacheTypesRow) => void
  readonly onNote?: (note: string) => void
}

export const DEFAULT_PAIRS: readonly TypePair[] = [
  { keys: 'f16', values: 'f16' },
  { keys: 'q8_0', values: 'q8_0' },
  { keys: 'q8_0', values: 'q4_0' },
  { keys: 'q4_0', values: 'q4_0' },
  { keys: 'q5_1', values: 'q5_1' },
  { keys: 'iq4_nl', values: 'iq4_nl' },
]

/** Of one decode run: two of them are as many as the engine needs to settle on a thread count. */
const STEPS = 16
const CHUNK = 512
/** A few pairs of runs that take longer are enough. Milliseconds. */
const LONG_MS = 2000
const LONG_ROUNDS = 3
const ROUNDS = 5
/** Single runs of less than this are noise; many of them are not. */
const SHORT_MS = 200
const SHORT_ROUNDS = 21
/** Before each run: the other engine's idle workers spin for about 2 ms before they sleep. */
const SETTLE_MS = 20

/** @param loadPeer what loads libllama with a pair of types, or throws where it does not take them */
export async function cacheTypes(options: CacheTypesOptions = {}, loadPeer = Peer.load): Promise<CacheTypesRow[]> {
  const rows: CacheTypesRow[] = []
  const path = await modelFile(options)
  await loadNative()
  for (const pair of options.pairs ?? DEFAULT_PAIRS)
    await racePair(path, pair, options, loadPeer, (row) => {
      rows.push(row)
      options.onRow?.(row)
    })
  return rows
}

/** The file of a shape, random weights written on first use; or of the house model. */
async function modelFile({ shape = 'qwen2.5-0.5b', type = 'q8_0', onNote }: CacheTypesOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = SPEED_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
  return await randomModelFile({ ...known, name: `speed-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}

async function racePair(
  path: string,
  pair: TypePair,
  options: CacheTypesOptions,
  loadPeer: typeof Peer.load,
  report: (row: CacheTypesRow) => void,
): Promise<void> {
  const { threads = availableParallelism(), lowering = 'auto', rounds, onNote } = options
  const { contexts = [2048, 8192, 32768] } = options
  const contextLength = Math.ceil((Math.max(...contexts) + STEPS) / 256) * 256
  using ours = await Ours.load(path, pair, contextLength, threads, lowering)
  const types = { keyType: pair.keys, valueType: pair.values }
  using peer = await peerOrNull(loadPeer, path, { contextLength, chunk: CHUNK, threads, ...types }, onNote)
  const random = new Random(11)
  const tokens = Int32Array.from({ length: CHUNK }, () => 259 + Math.floor(random.uniform() * (ours.vocab - 259)))
  const facts = { type_k: pair.keys, type_v: pair.values }
  const { bytesPerToken: kv_bytes_per_token } = ours
  for (const context of contexts) {
    const before = Math.max(0, context - CHUNK)
    const chunk = tokens.subarray(0, context - before)
    peer?.fill(before)
    const prefill = await compare(prefillOf(chunk, before, ours, peer), chunk.length, rounds)
    report({ ...facts, metric: 'prefill', context, ...prefill, kv_bytes_per_token })
    const steps = decodeOf(tokens[0]!, context, ours, peer)
    if (peer) await giveBestThreads(peer, threads, steps)
    const decode = await compare(steps, STEPS, rounds)
    report({ ...facts, metric: 'decode', context, ...decode, kv_bytes_per_token })
    peer?.useThreads(threads)
  }
}

async function peerOrNull(
  load: typeof Peer.load,
  path: string,
  options: PeerOptions,
  onNote: CacheTypesOptions['onNote'],
): Promise<Peer | null> {
  try {
    return await load(path, options)
  } catch (error) {
    if (!(error instanceof KvasirError)) throw error
    onNote?.(`libllama does not take ${options.keyType}/${options.valueType}: ${error.message}`)
    return null
  }
}

// runs ----------------------------------------------------------------------------------------------------------------

interface Contest {
  readonly ours: () => Promise<void>
  readonly peer: (() => void) | null
}

function prefillOf(chunk: Int32Array, before: number, ours: Ours, peer: Peer | null): Contest {
  return {
    ours: async () => {
      ours.fill(before)
      await ours.append(chunk)
    },
    peer:
      peer &&
      (() => {
        peer.truncate(before)
        peer.eval(chunk)
      }),
  }
}

function decodeOf(first: number, context: number, ours: Ours, peer: Peer | null): Contest {
  return {
    ours: async () => {
      ours.fill(context)
      let next = first
      for (let i = 0; i < STEPS; i++) next = argmax(await ours.append(Int32Array.of(next)))
    },
    peer:
      peer &&
      (() => {
        peer.truncate(context)
        let next = first
        for (let i = 0; i < STEPS; i++) next = argmax(peer.eval(Int32Array.of(next)))
      }),
  }
}

async function compare(
  { ours, peer }: Contest,
  tokens: number,
  rounds: number | undefined,
): Promise<Pick<CacheTypesRow, 'ours_tok_s' | 'peer_tok_s' | 'ratio'>> {
  const runPeer = peer ? () => timed(peer) : async () => Number.NaN
  // First runs do not count: caches, page faults, graphs, thread counts. Long ones are not repeated for that.
  let firstMs = await timed(ours)
  if (firstMs <= LONG_MS) firstMs = await timed(ours)
  await runPeer()
  const oursMs: number[] = []
  const peerMs: number[] = []
  const pairs = rounds ?? (firstMs > LONG_MS ? LONG_ROUNDS : firstMs < SHORT_MS ? SHORT_ROUNDS : ROUNDS)
  for (let i = 0; i < pairs; i++) {
    if (i % 2) peerMs.push(await runPeer())
    oursMs.push(await timed(ours))
    if (i % 2 === 0) peerMs.push(await runPeer())
  }
  return {
    ours_tok_s: (1000 * tokens) / median(oursMs),
    peer_tok_s: peer && (1000 * tokens) / median(peerMs),
    ratio: peer && median(oursMs.map((ms, i) => peerMs[i]! / ms)),
  }
}

/** libllama decodes with all threads or one, whichever is faster for it. */
async function giveBestThreads(peer: Peer, most: number, { peer: run }: Contest): Promise<void> {
  let best = { threads: most, ms: Number.POSITIVE_INFINITY }
  for (const threads of new Set([most, 1])) {
    peer.useThreads(threads)
    const ms = Math.min(await timed(run!), await timed(run!))
    if (ms < best.ms) best = { threads, ms }
  }
  peer.useThreads(best.threads)
}

/** Milliseconds. */
async function timed(run: () => Promise<void> | void): Promise<number> {
  await sleep(SETTLE_MS)
  const start = performance.now()
  await run()
  return performance.now() - start
}

// ours ----------------------------------------------------------------------------------------------------------------

/** One sequence in a store of a pair of types. */
class Ours implements Disposable {
  readonly vocab: number
  readonly bytesPerToken: number
  readonly #model: Model
  readonly #store: KvStore
  readonly #executor: Executor
  readonly #sequence: Sequence

  private constructor(model: Model, store: KvStore, executor: Executor, { keys, values }: TypePair, rows: number) {
    this.#model = model
    this.#store = store
    this.#executor = executor
    this.#sequence = new Sequence(executor, rows)
    const { layers, kvHeads, headDim, vocab } = model.config
    this.vocab = vocab
    this.bytesPerToken = layers * kvHeads * (rowBytes(keys, headDim) + rowBytes(values, headDim))
  }

  /** @throws KvasirError INVALID_ARGUMENT for types that do not fit the heads, OUT_OF_MEMORY */
  static async load(
    path: string,
    pair: TypePair,
    rows: number,
    threads: number,
    lowering: LoweringName,
  ): Promise<Ours> {
    const device = cpuDevice()
    const model = await Model.load(path, () => ({ device, contextLength: rows }))
    try {
      const types = { keyType: pair.keys, valueType: pair.values }
      const shape = storeShape(model.config, { cells: rows, ...types, lowering }, device)
      const store = new KvStore(shape, device)
      return new Ours(model, store, new Executor(model, store, { threads, lowering }), pair, rows)
    } catch (error) {
      model[Symbol.dispose]()
      throw error
    }
  }

  /** Leaves the first `rows` rows; those that are missing become zeros, or what was there before. */
  fill(rows: number): void {
    const { length } = this.#sequence
    this.#sequence.truncate(Math.min(length, rows))
    if (length >= rows) return
    const [sequence] = this.#store.sequences.values()
    this.#store.append(
      sequence!,
      Int32Array.from({ length: rows - length }, (_, i) => length + i),
    )
  }

  /** The logits of the last one. */
  append(tokens: Int32Array): Promise<Float32Array> {
    return this.#sequence.append(tokens, CHUNK)
  }

  [Symbol.dispose](): void {
    this.#sequence[Symbol.dispose]()
    this.#executor[Symbol.dispose]()
    this.#store[Symbol.dispose]()
    this.#model[Symbol.dispose]()
  }
}
