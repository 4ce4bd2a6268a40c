/**
 * `kvasir bench batch`: tokens per second of several sequences that decode together, against libllama with as many, both ways
 * in which it can keep them (one buffer for all, `kv_unified`, or one each). One process, as many threads, taking turns; what
 * counts is the ratio within a pair of neighbouring runs. Contexts are filled without computing them where that is possible:
 * ours are zeros, libllama's sequences are copies of one prompt. Nothing is shared between sequences on either side.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KvSequence } from '../src/cache/sequence.ts'
import { KvStore } from '../src/cache/store.ts'
import { modelPath } from '../src/engine/options.ts'
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
import { Random } from './random-model.ts'
import { median, SPEED_SHAPES } from './speed.ts'

export interface BatchRow {
  readonly sequences: number
  /** Tokens in the cache of each sequence before. */
  readonly context: number
  /** Whether libllama kept all sequences in one buffer. */
  readonly kv_unified: boolean
  readonly ours_tok_s: number
  readonly peer_tok_s: number
  /** Median over pairs of runs of their time over ours: above 1, Kvasir is faster. */
  readonly ratio: number
}

export interface BatchOptions {
  /** `house` or a name of SPEED_SHAPES. Default qwen2.5-0.5b. */
  readonly shape?: string
  readonly type?: GgmlType
  /** Default 1, 2, 4, 8, 16. */
  readonly sequences?: readonly number[]
  /** Default 1024 and 4096. */
  readonly contexts?: readonly number[]
  readonly threads?: number
  readonly lowering?: LoweringName
  /** Default 5. */
  readonly rounds?: number
  readonly onRow?: (row: BatchRow) => void
  readonly onNote?: (note: string) => void
}

/** Steps of one run. */
const STEPS = 8
const CHUNK = 512
/** Before each run: the other engine's idle workers spin for about 2 ms before they sleep. */
const SETTLE_MS = 20

export async function batch(options: BatchOptions = {}): Promise<BatchRow[]> {
  const rows: BatchRow[] = []
  const { shape = 'qwen2.5-0.5b', type = 'q8_0' } = options
  const known = SPEED_SHAPES[shape]
  if (!known && shape !== 'house')
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
  const path = known
    ? await randomModelFile({ ...known, name: `speed-${shape}`, type }, (p) => options.onNote?.(`writing ${p} (once)`))
    : modelPath('house')
  await loadNative()
  for (const context of options.contexts ?? [1024, 4096])
    for (const sequences of options.sequences ?? [1, 2, 4, 8, 16])
      for (const row of await race(path, sequences, context, options)) {
        rows.push(row)
        options.onRow?.(row)
      }
  return rows
}

async function race(path: string, sequences: number, context: number, options: BatchOptions): Promise<BatchRow[]> {
  const threads = options.threads ?? availableParallelism()
  const contextLength = Math.ceil((context + STEPS) / 256) * 256
  using ours = await Batch.load(path, sequences, context, threads, options.lowering ?? 'auto')
  const random = new Random(11)
  const prompt = Int32Array.from({ length: context }, () => 259 + Math.floor(random.uniform() * (ours.vocab - 259)))
  const peerOptions = { contextLength, chunk: CHUNK, threads, sequences }
  const rows: BatchRow[] = []
  for (const unified of [true, false]) {
    using peer = await Peer.load(path, { ...peerOptions, unified })
    peer.run(prompt)
    peer.copyToAll()
    const oursMs: number[] = []
    const peerMs: number[] = []
    const runOurs = async () => {
      await sleep(SETTLE_MS)
      const start = performance.now()
      await ours.run()
      oursMs.push(performance.now() - start)
    }
    const runPeer = async () => {
      await sleep(SETTLE_MS)
      peer.truncate(context)
      const start = performance.now()
      let next = new Int32Array(sequences).fill(prompt[0]!)
      for (let i = 0; i < STEPS; i++) next = Int32Array.from(peer.step(next, context + i), argmax)
      peerMs.push(performance.now() - start)
    }
    // First runs do not count: caches, page faults, graphs, thread counts.
    for (let i = 0; i < 2; i++) {
      await runOurs()
      await runPeer()
    }
    for (const list of [oursMs, peerMs]) list.length = 0
    for (let i = 0; i < (options.rounds ?? 5); i++) {
      if (i % 2) await runPeer()
      await runOurs()
      if (i % 2 === 0) await runPeer()
    }
    const tokens = sequences * STEPS
    rows.push({
      ...{ sequences, context, kv_unified: unified },
      ours_tok_s: (1000 * tokens) / median(oursMs),
      peer_tok_s: (1000 * tokens) / median(peerMs),
      ratio: median(oursMs.map((ms, i) => peerMs[i]! / ms)),
    })
  }
  return rows
}

/** Our sequences, each with `context` rows. */
class Batch implements Disposable {
  readonly #model: Model
  readonly #store: KvStore
  readonly #executor: Executor
  readonly #sequences: readonly KvSequence[]

  private constructor(model: Model, store: KvStore, executor: Executor, sequences: readonly KvSequence[]) {
    this.#model = model
    this.#store = store
    this.#executor = executor
    this.#sequences = sequences
  }

  static async load(path: string, sequences: number, context: number, threads: number, lowering: LoweringName) {
    const device = cpuDevice()
    const model = await Model.load(path, () => ({ device, contextLength: context + STEPS }))
    const cells = sequences * (context + 256)
    const shape = storeShape(model.config, { cells, keyType: 'f16', valueType: 'f16', lowering }, device)
    const store = new KvStore(shape, device)
    const executor = new Executor(model, store, { threads, lowering, mostItems: sequences })
    const all = Array.from({ length: sequences }, () => {
      const s = store.create(context + STEPS)
      store.append(
        s,
        Int32Array.from({ length: context }, (_, i) => i),
      )
      return s
    })
    return new Batch(model, store, executor, all)
  }

  get vocab(): number {
    return this.#model.config.vocab
  }

  /** Decodes some tokens, and takes them back. */
  async run(): Promise<void> {
    const { layers } = this.#model.config
    let next = this.#sequences.map(() => 300)
    for (let i = 0; i < STEPS; i++) {
      const items = this.#sequences.map((s, k) => {
        const positions = Int32Array.of(s.columns[0]!.end)
        this.#store.append(s, positions)
        return {
          ...{ sequence: s.id, positions, store: { kind: 'tail' } as const, layers: { from: 0, to: layers } },
          input: { kind: 'tokens', tokens: Int32Array.of(next[k]!) } as const,
          outputs: { logits: [0], hidden: false },
          mask: { kind: 'causal' } as const,
        }
      })
      const { items: results } = await this.#executor.run({ items })
      next = results.map((r) => argmax(r.logits!))
    }
    for (const s of this.#sequences) this.#store.takeBack(s, STEPS)
  }

  [Symbol.dispose](): void {
    this.#executor[Symbol.dispose]()
    this.#store[Symbol.dispose]()
    this.#model[Symbol.dispose]()
  }
}
