/**
 * `kvasir bench stall`: what four running answers feel of long prompts that come in, under each scheduler. Gaps between tokens
 * as their reader sees them, in one process with the engine: *loaded* while a prompt is being computed, from its admission
 * until its first token (where the gap's middle lies decides); *quiet* while nothing else runs, as many tokens before the
 * prompt as behind it: answers grow by thousands of rows while a prompt is computed in small pieces, and a gap is longer for
 * that alone. First tokens are no gaps. Prompts come one at a time, each to four answers that start anew, and the schedulers
 * take turns, so that the machine's mood falls on all.
 *
 * The budget of `sarathi-serve` follows from the aim: a gap beside a prompt is the time of a step of tau rows, so tau is the
 * largest whose step takes no longer than twice that of the answers alone, with margin (tau from the SLO, as in the paper). It
 * is measured at the start, for where a step is dearest: at the prompt's end, the answers as long as they will then be. On a CPU a row of a
 * prompt costs about what a row of an answer does (there is no idle arithmetic for it to use, as on a GPU), and more at the
 * end of a long context: four answers leave room for two or three rows. `fcfs` and `sarathi` get the engine's default of 512:
 * they are for throughput, and have nothing to gain from less.
 *
 * The default shape has layers of Llama-3.2-1B, two of them, and a smaller vocabulary, so that a run takes minutes.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KvSequence } from '../src/cache/sequence.ts'
import { KvStore } from '../src/cache/store.ts'
import type { WorkItem } from '../src/contract/work-item.ts'
import { LocalEngine } from '../src/engine/local.ts'
import { modelPath } from '../src/engine/options.ts'
import { Executor } from '../src/executor/run.ts'
import { storeShape } from '../src/executor/store-shape.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { loadNative } from '../src/ggml/library.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import { Model } from '../src/model/model.ts'
import { DEFAULT_SCHEDULER_OPTIONS, type SchedulerName } from '../src/scheduler/index.ts'
import { randomTokens, withoutEnd } from './cache.ts'
import { randomModelFile } from './cache-folder.ts'
import { median, SPEED_SHAPES } from './speed.ts'

export interface StallRow {
  readonly scheduler: SchedulerName
  /** Inter-token latency of the answers while a prompt is computed. */
  readonly itl_p50_ms: number
  readonly itl_p99_ms: number
  /** The same while nothing else runs. */
  readonly quiet_itl_p99_ms: number
  /** Of the prompts, from arrival to first token. */
  readonly ttft_p50_ms: number
}

export interface StallOptions {
  /** `house` or a name of {@link STALL_SHAPES}. Default llama-3.2-1b-2layers. */
  readonly shape?: string
  /** Default q8_0. */
  readonly type?: GgmlType
  /** Default 8192. */
  readonly promptTokens?: number
  /** Of `sarathi-serve`. Default: measured, see above. */
  readonly tokenBudget?: number
  /** Prompts per scheduler. Default 2. */
  readonly rounds?: number
  readonly threads?: number
  readonly onRow?: (row: StallRow) => void
  readonly onNote?: (note: string) => void
}

export const STALL_DEFAULT_SHAPE = 'llama-3.2-1b-2layers'
export const STALL_SHAPES: typeof SPEED_SHAPES = {
  [STALL_DEFAULT_SHAPE]: { ...SPEED_SHAPES['llama-3.2-1b']!, layers: 2, vocab: 32000 },
  ...SPEED_SHAPES,
}

const SCHEDULERS = ['fcfs', 'sarathi', 'sarathi-serve'] as const satisfies readonly SchedulerName[]
const STREAMS = 4
/** Of these, 512 are stored before the first round: so all four answers begin in one step, whatever the budget. */
const STREAM_PROMPT = 513
/** Tokens of each answer before its gaps count: graphs, thread counts. */
const SETTLE = 24
/** Tokens of each answer in the quiet phase before a prompt, and again in that behind it. */
const QUIET = 256
/** Tokens that an answer may have beyond those it should need: the run fails when one ends. */
const SPARE = 256
/** A gap beside a prompt may be so many times a quiet one; and how much of that the budget is to use. */
const MOST_SLOWER = 2
const MARGIN = 0.9
const BUDGETS = [6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512]
const CALIBRATION_RUNS = 16

export async function stall(options: StallOptions = {}): Promise<StallRow[]> {
  const { promptTokens = 8192, rounds = 2, onNote } = options
  const threads = options.threads ?? availableParallelism()
  const path = await modelFile(options)
  const tau = options.tokenBudget ?? (await findBudget(path, promptTokens, threads, onNote))
  const probes: Probe[] = []
  try {
    for (const scheduler of SCHEDULERS) {
      const budget = scheduler === 'sarathi-serve' ? tau : DEFAULT_SCHEDULER_OPTIONS.tokenBudget
      probes.push(await Probe.load(path, scheduler, budget, promptTokens, threads))
    }
    for (let round = 0; round < rounds; round++)
      for (const probe of probes) {
        await probe.run(round)
        const { scheduler, itl_p50_ms, itl_p99_ms, quiet_itl_p99_ms } = probe.row
        onNote?.(
          `prompt ${round + 1}/${rounds} ${scheduler}: gaps ${itl_p50_ms.toFixed(1)} ms p50, ${itl_p99_ms.toFixed(1)} ms p99, ` +
            `quiet ${quiet_itl_p99_ms.toFixed(1)} ms p99; first token after ${(probe.ttftMs.at(-1)! / 1000).toFixed(1)} s`,
        )
      }
    const rows = probes.map((p) => p.row)
    for (const row of rows) options.onRow?.(row)
    return rows
  } finally {
    for (const probe of probes) await probe.engine.dispose()
  }
}

async function modelFile({ shape = STALL_DEFAULT_SHAPE, type = 'q8_0', onNote }: StallOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = STALL_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(STALL_SHAPES).join(', ')}`)
  const prefix = shape in SPEED_SHAPES ? 'speed' : 'stall'
  return await randomModelFile({ ...known, name: `${prefix}-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}

/** Tokens of an answer that runs beside a prompt from start to end. */
function answerTokens(promptTokens: number, budget: number): number {
  return SETTLE + QUIET + Math.ceil(promptTokens / Math.max(1, budget - STREAMS)) + QUIET + SPARE
}

// the budget ----------------------------------------------------------------------------------------------------------

/** The largest budget whose dearest step keeps within {@link MOST_SLOWER} quiet ones. Contexts are zeros, not computed. */
async function findBudget(
  path: string,
  promptTokens: number,
  threads: number,
  onNote: StallOptions['onNote'],
): Promise<number> {
  await loadNative()
  const device = cpuDevice()
  const lowering = 'auto'
  const longest = STREAM_PROMPT + answerTokens(promptTokens, BUDGETS[0]!)
  using model = await Model.load(path, () => ({ device, contextLength: promptTokens + 256 }))
  const cells = promptTokens + STREAMS * longest + (STREAMS + 1) * 256
  const shape = storeShape(model.config, { cells, keyType: 'f16', valueType: 'f16', lowering }, device)
  using store = new KvStore(shape, device)
  using executor = new Executor(model, store, { threads, lowering, mostItems: STREAMS + 1 })
  const streams = Array.from({ length: STREAMS }, () => store.create(longest))
  const prompt = store.create(promptTokens)

  /** Median of some steps of a row per stream, and `rows` rows of the prompt; nothing stays. */
  const stepMs = async (streamRows: number, rows: number): Promise<number> => {
    for (const s of streams) setRows(store, s, streamRows)
    setRows(store, prompt, promptTokens - rows)
    const times: number[] = []
    // The first half does not count: graphs, thread counts.
    for (let i = 0; i < 2 * CALIBRATION_RUNS; i++) {
      const parts = [...streams.map((s) => [s, 1] as const), ...(rows > 0 ? [[prompt, rows] as const] : [])]
      const items = parts.map(([s, n]) => workItem(store, s, n, model.config.layers, s !== prompt))
      const start = performance.now()
      await executor.run({ items })
      times.push(performance.now() - start)
      for (const [s, n] of parts) store.takeBack(s, n)
    }
    return median(times.slice(CALIBRATION_RUNS))
  }

  // The smallest is not questioned: with less, a prompt would take a step for every row.
  let best = BUDGETS[0]!
  for (const budget of BUDGETS) {
    const atEnd = STREAM_PROMPT + answerTokens(promptTokens, budget) - QUIET - SPARE
    const quietMs = await stepMs(atEnd, 0)
    const ratio = (await stepMs(atEnd, budget - STREAMS)) / quietMs
    onNote?.(`a step of ${budget} rows takes ${ratio.toFixed(2)} quiet ones of ${quietMs.toFixed(1)} ms`)
    if (ratio > MARGIN * MOST_SLOWER) break
    best = budget
  }
  onNote?.(`token budget of sarathi-serve: ${best}`)
  return best
}

function setRows(store: KvStore, s: KvSequence, rows: number): void {
  const { end } = s.columns[0]!
  if (rows < end) store.truncate(s, rows)
  else
    store.append(
      s,
      Int32Array.from({ length: rows - end }, (_, i) => end + i),
    )
}

function workItem(store: KvStore, s: KvSequence, rows: number, layers: number, logits: boolean): WorkItem {
  const { end } = s.columns[0]!
  const positions = Int32Array.from({ length: rows }, (_, i) => end + i)
  store.append(s, positions)
  return {
    ...{ sequence: s.id, positions, store: { kind: 'tail' }, layers: { from: 0, to: layers } },
    input: { kind: 'tokens', tokens: Int32Array.from(positions, (p) => 259 + (p % 1000)) },
    outputs: { logits: logits ? [rows - 1] : [], hidden: false },
    mask: { kind: 'causal' },
  }
}

// the streams ---------------------------------------------------------------------------------------------------------

/** One scheduler's engine, and what was measured on it. */
class Probe {
  readonly engine: LocalEngine
  readonly ttftMs: number[] = []
  readonly #scheduler: SchedulerName
  readonly #promptTokens: number
  readonly #answerTokens: number
  readonly #quiet: number[] = []
  readonly #loaded: number[] = []
  readonly #sampling: { temperature: number; logitBias: ReadonlyMap<number, number> }

  private constructor(engine: LocalEngine, scheduler: SchedulerName, promptTokens: number, answer: number) {
    this.engine = engine
    this.#scheduler = scheduler
    this.#promptTokens = promptTokens
    this.#answerTokens = answer
    this.#sampling = { temperature: 0, logitBias: withoutEnd(engine) }
  }

  static async load(
    path: string,
    scheduler: SchedulerName,
    tokenBudget: number,
    promptTokens: number,
    threads: number,
  ): Promise<Probe> {
    const answer = answerTokens(promptTokens, tokenBudget)
    // There is always memory for one context: one that holds everything at once, so that nothing is preempted.
    const contextLength = promptTokens + STREAMS * (STREAM_PROMPT + answer) + (STREAMS + 4) * 256
    const engine = await LocalEngine.load(path, { contextLength, threads, scheduler, tokenBudget })
    const probe = new Probe(engine, scheduler, promptTokens, answer)
    for (let i = 0; i < STREAMS; i++) await probe.#ask(probe.#streamPrompt(i))
    return probe
  }

  get row(): StallRow {
    return {
      ...{ scheduler: this.#scheduler, itl_p50_ms: percentile(this.#loaded, 0.5) },
      ...{ itl_p99_ms: percentile(this.#loaded, 0.99), quiet_itl_p99_ms: percentile(this.#quiet, 0.99) },
      ttft_p50_ms: median(this.ttftMs),
    }
  }

  /** Four answers start, run alone for a while, then beside a prompt, then alone again. */
  async run(round: number): Promise<void> {
    const { engine } = this
    /** When each token of each answer was received. */
    const times: number[][] = Array.from({ length: STREAMS }, () => [])
    const stop = new AbortController()
    let failure: unknown
    let unlisten = () => {}
    const streams = times.map((mine, i) =>
      this.#stream(i, mine, stop.signal).catch((error: unknown) => {
        failure ??= error
      }),
    )
    const until = async (isDone: () => boolean) => {
      while (!isDone()) {
        if (failure) throw failure
        await sleep(5)
      }
    }
    try {
      await until(() => times.every((t) => t.length >= SETTLE))
      const quiet = performance.now()
      await until(() => times.every((t) => t.length >= SETTLE + QUIET))
      const arrival = performance.now()
      let admission = arrival
      unlisten = engine.onEvent((event) => {
        if (event.kind === 'request-admit') admission = performance.now()
      })
      // Others than in any other round: nothing of it is stored.
      await this.#ask(randomTokens(engine, this.#promptTokens, 1000 + round))
      const first = performance.now()
      // Gaps that the prompt held open belong to it.
      await until(() => times.every((t) => t.at(-1)! > first))
      const quietAgain = performance.now()
      const lengths = times.map((t) => t.length)
      await until(() => times.every((t, i) => t.length >= lengths[i]! + QUIET))
      this.ttftMs.push(first - arrival)
      for (const mine of times)
        for (let i = 1; i < mine.length; i++) {
          const gap = mine[i]! - mine[i - 1]!
          const middle = mine[i]! - gap / 2
          if ((middle > quiet && middle < arrival) || middle > quietAgain) this.#quiet.push(gap)
          if (middle > admission && middle < first) this.#loaded.push(gap)
        }
    } finally {
      unlisten()
      stop.abort()
      await Promise.all(streams)
    }
  }

  #streamPrompt(index: number): Int32Array {
    return randomTokens(this.engine, STREAM_PROMPT, 1 + index)
  }

  /** Until the first token. */
  async #ask(tokens: Int32Array): Promise<void> {
    const parts = this.engine.generate({ tokens, maxTokens: 1, sampling: this.#sampling })
    for await (const part of parts) if (part.kind === 'token') return
  }

  /** Notes when tokens come, until it is stopped; the model may not end by itself. */
  async #stream(index: number, times: number[], signal: AbortSignal): Promise<void> {
    const tokens = this.#streamPrompt(index)
    const sampling = this.#sampling
    for await (const part of this.engine.generate({ tokens, maxTokens: this.#answerTokens, sampling })) {
      if (signal.aborted) return
      if (part.kind === 'token') times.push(performance.now())
    }
    throw new Error(`${this.#scheduler}: an answer ended before the prompt was done`)
  }
}

/** Of the nearest rank. */
function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(p * sorted.length) - 1)]!
}
