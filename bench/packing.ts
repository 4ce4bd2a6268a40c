/**
 * `kvasir bench packing`: prepacking against what it was made to replace, on prompts of mixed length that come at once.
 *
 *   prepacking-padded  the baseline: all prompts in one batch, padded to the longest
 *   length-ordered     the same scheduler, fed eight neighbours at a time after sorting by length, shortest first
 *   prepacking         best-fit decreasing into full steps
 *   sarathi-serve      a ragged list of rows in full steps, in order of arrival: no padding either, the upper bound
 *
 * One process, an engine per scheduler, runs taking turns, nothing in the cache before. Lengths are log-normal (median 96,
 * sigma 1, 8 to 2048), or all equal to their mean as a control.
 *
 * Rows are counted from step-end events, padding included. row_ratio is a ratio of the arithmetic in linear layers;
 * pair_ratio is that of attention, in query-key pairs under the causal mask, from the lengths.
 *
 * A real padded batch ends for all its prompts at once. Here its rows are cut into steps of the engine's budget, prompt by
 * prompt, so that its first tokens come earlier than they would: its ttft_p50_ms is too good.
 */
import { availableParallelism } from 'node:os'
import { KvasirError } from '../src/contract/errors.ts'
import { LocalEngine } from '../src/engine/local.ts'
import { modelPath } from '../src/engine/options.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import type { SchedulerName } from '../src/scheduler/index.ts'
import { randomModelFile } from './cache-folder.ts'
import { Random, type RandomModel } from './random-model.ts'
import { median } from './speed.ts'

export const PACKINGS = ['prepacking-padded', 'length-ordered', 'prepacking', 'sarathi-serve'] as const
export type Packing = (typeof PACKINGS)[number]

export interface PackingRow {
  readonly prompts: number
  readonly lengths: Lengths
  readonly scheduler: Packing
  /** Rows that went through the model, padding included. */
  readonly rows_computed: number
  /** Tokens of all prompts. */
  readonly useful_tokens: number
  /** Rows of the padded baseline over rows computed. */
  readonly row_ratio: number
  /** Query-key pairs of the padded baseline over those of this one. */
  readonly pair_ratio: number
  /** From the arrival of the prompts until the last step with rows of theirs ended. */
  readonly prefill_ms: number
  readonly ttft_p50_ms: number
  /** Median over rounds of the padded baseline's prefill time over this one's. */
  readonly wall_ratio: number
  /** The same in processor time. With one thread it is what wall_ratio would be on an idle machine; more wait spinning. */
  readonly cpu_ratio: number
  /** Prompts whose first greedy token is not the padded baseline's, near ties left out. */
  readonly tokens_differ: number
  /** Prompts whose first token is another one, and both were about as likely. */
  readonly near_ties: number
}

export type Lengths = 'log-normal' | 'constant'

export interface PackingOptions {
  /** `house` or a name of {@link PACKING_SHAPES}. Default `house`. */
  readonly shape?: string
  /** Weights of a random model. Default q8_0. */
  readonly type?: GgmlType
  /** Default 16 and 32; at most 256. */
  readonly prompts?: readonly number[]
  readonly threads?: number
  /** Default 3. */
  readonly rounds?: number
  readonly onRow?: (row: PackingRow) => void
  readonly onNote?: (note: string) => void
}

export const PACKING_SHAPES: Readonly<Record<string, Omit<RandomModel, 'name' | 'type'>>> = {
  'llama-100m': {
    architecture: 'llama',
    layers: 12,
    width: 768,
    heads: 12,
    kvHeads: 4,
    headDim: 64,
    ffWidth: 2048,
    vocab: 32000,
    tied: true,
  },
}

const MEDIAN_LENGTH = 96
const SIGMA = 1
const SHORTEST = 8
const LONGEST = 2048
const MOST_PROMPTS = 256
/** Prompts of one batch of `length-ordered`. */
const BATCH = 8
/** Answers that a sequence is given room for (loop.ts): of the padded baseline, so that padding lies behind its prompt. */
const ROOM = 1024
/**
 * Two tokens whose log probabilities are so close are a tie. Where a prompt is cut decides how it is rounded: that moved them
 * by 0.05 on the house model, as much as a third of what f32 caches do.
 */
const NEAR_TIE = 0.15

export async function packing(options: PackingOptions = {}): Promise<PackingRow[]> {
  const counts = options.prompts ?? [16, 32]
  const most = Math.max(...counts)
  if (most > MOST_PROMPTS)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `${most} prompts; an engine runs at most ${MOST_PROMPTS} sequences at once`,
    )
  const path = await modelFile(options)
  const lists = counts.flatMap((n) => {
    const mixed = logNormal(n)
    const mean = Math.round(sum(mixed) / n)
    return [
      { lengths: 'log-normal' as const, list: mixed },
      { lengths: 'constant' as const, list: mixed.map(() => mean) },
    ]
  })
  const tokens = Math.max(...lists.map(({ list }) => list.length * (Math.max(...list) + ROOM + 64)))
  await using engines = await Engines.load(path, tokens, most, options.threads ?? availableParallelism())
  const rows: PackingRow[] = []
  for (const { lengths, list } of lists)
    for (const row of await race(engines, lengths, list, options.rounds ?? 3)) {
      rows.push(row)
      options.onRow?.(row)
    }
  return rows
}

async function modelFile({ shape = 'house', type = 'q8_0', onNote }: PackingOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = PACKING_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(PACKING_SHAPES).join(', ')}`)
  return await randomModelFile({ ...known, name: `packing-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}

function logNormal(n: number): number[] {
  const random = new Random(n)
  return Array.from({ length: n }, () => {
    const length = Math.round(MEDIAN_LENGTH * Math.exp(SIGMA * random.normal()))
    return Math.min(LONGEST, Math.max(SHORTEST, length))
  })
}

async function race(
  engines: Engines,
  lengths: Lengths,
  list: readonly number[],
  rounds: number,
): Promise<PackingRow[]> {
  const random = new Random(list.length + 1)
  const { vocab } = engines
  // Nothing is shared: no two prompts begin alike.
  const prompts = list.map((n) => Array.from({ length: n }, () => Math.floor(random.uniform() * (vocab - 259)) + 259))
  const runs = new Map(PACKINGS.map((p) => [p, [] as Run[]]))
  // The first round does not count: page faults, thread counts.
  for (let round = 0; round <= rounds; round++)
    for (const p of round % 2 ? PACKINGS : PACKINGS.toReversed()) {
      const run = await engines.run(p, prompts)
      if (round) runs.get(p)!.push(run)
    }
  const padded = runs.get('prepacking-padded')!
  return PACKINGS.map((scheduler): PackingRow => {
    const own = runs.get(scheduler)!
    const { rows, first } = own[0]!
    const others = first.filter((f, i) => f.token !== padded[0]!.first[i]!.token)
    return {
      ...{ prompts: list.length, lengths, scheduler, rows_computed: rows, useful_tokens: sum(list) },
      row_ratio: padded[0]!.rows / rows,
      pair_ratio: pairs('prepacking-padded', list) / pairs(scheduler, list),
      prefill_ms: median(own.map((r) => r.prefillMs)),
      ttft_p50_ms: median(own.map((r) => median(r.first.map((f) => f.ms)))),
      wall_ratio: median(own.map((r, i) => padded[i]!.prefillMs / r.prefillMs)),
      cpu_ratio: median(own.map((r, i) => padded[i]!.cpuMs / r.cpuMs)),
      tokens_differ: others.filter((f) => f.lead >= NEAR_TIE).length,
      near_ties: others.filter((f) => f.lead < NEAR_TIE).length,
    }
  })
}

/** Prompts as they come together, by index. */
function batches(packing: Packing, list: readonly number[]): number[][] {
  const all = [...list.keys()]
  if (packing !== 'length-ordered') return [all]
  all.sort((a, b) => list[a]! - list[b]! || a - b)
  return Array.from({ length: Math.ceil(all.length / BATCH) }, (_, i) => all.slice(i * BATCH, (i + 1) * BATCH))
}

/** Query-key pairs: a row sees itself and what is before it. */
function pairs(packing: Packing, list: readonly number[]): number {
  const triangle = (n: number) => (n * (n + 1)) / 2
  if (!isPadded(packing)) return sum(list.map(triangle))
  return sum(batches(packing, list).map((b) => b.length * triangle(Math.max(...b.map((i) => list[i]!)))))
}

function isPadded(packing: Packing): boolean {
  return packing === 'prepacking-padded' || packing === 'length-ordered'
}

interface First {
  readonly token: number
  /** Log probability over that of the second best. */
  readonly lead: number
  /** Time to it. */
  readonly ms: number
}

interface Run {
  readonly rows: number
  readonly prefillMs: number
  readonly cpuMs: number
  /** Of each prompt. */
  readonly first: readonly First[]
}

/** One engine for each scheduler, all with the same memory. */
class Engines implements AsyncDisposable {
  readonly vocab: number
  readonly #engines: ReadonlyMap<SchedulerName, LocalEngine>
  /** Keeps answers from ending by themselves. */
  readonly #logitBias: ReadonlyMap<number, number>

  private constructor(engines: ReadonlyMap<SchedulerName, LocalEngine>) {
    this.#engines = engines
    const { tokenizer } = [...engines.values()][0]!.model
    this.vocab = tokenizer.vocabSize
    const ends = Array.from({ length: this.vocab }, (_, t) => t).filter((t) => tokenizer.isEndOfGeneration(t))
    this.#logitBias = new Map(ends.map((t) => [t, Number.NEGATIVE_INFINITY]))
  }

  static async load(path: string, tokens: number, maxSequences: number, threads: number): Promise<Engines> {
    let perToken: number
    {
      await using probe = await LocalEngine.load(path, { contextLength: 256 })
      perToken = probe.info.kvBytesPerToken
    }
    const options = { contextLength: LONGEST + ROOM + 64, kvMemory: tokens * perToken, maxSequences, threads }
    const engines = new Map<SchedulerName, LocalEngine>()
    try {
      for (const scheduler of ['prepacking-padded', 'prepacking', 'sarathi-serve'] as const)
        engines.set(scheduler, await LocalEngine.load(path, { ...options, device: 'CPU', scheduler }))
      return new Engines(engines)
    } catch (error) {
      for (const e of engines.values()) await e.dispose()
      throw error
    }
  }

  async run(packing: Packing, prompts: readonly (readonly number[])[]): Promise<Run> {
    const engine = this.#engines.get(packing === 'length-ordered' ? 'prepacking-padded' : packing)!
    await engine.clearCache()
    const first: First[] = []
    let [rows, prefillMs, cpuMs] = [0, 0, 0]
    const lengths = prompts.map((p) => p.length)
    for (const batch of batches(packing, lengths)) {
      const longest = isPadded(packing) ? Math.max(...batch.map((i) => lengths[i]!)) : null
      const run = await this.#runBatch(
        engine,
        batch.map((i) => prompts[i]!),
        longest,
      )
      batch.forEach((i, k) => {
        const f = run.first[k]!
        first[i] = { ...f, ms: prefillMs + f.ms }
      })
      rows += run.rows
      prefillMs += run.prefillMs
      cpuMs += run.cpuMs
    }
    return { rows, prefillMs, cpuMs, first }
  }

  /**
   * @param longest not null: what all prompts are padded to. A request that is done leaves the engine, and its padding would
   *   not be computed; so with padding, requests want more tokens than one, and are ended when all rows are computed.
   */
  async #runBatch(engine: LocalEngine, prompts: readonly (readonly number[])[], longest: number | null): Promise<Run> {
    const wanted = longest === null ? sum(prompts.map((p) => p.length)) : longest * prompts.length
    const ends = prompts.map(() => new AbortController())
    let [rows, prefillMs, cpuMs] = [0, 0, 0]
    const stopListening = engine.onEvent((e) => {
      if (e.kind !== 'step-end') return
      rows += e.prefillRows
      if (e.prefillRows > 0) {
        prefillMs = performance.now() - start
        const { user, system } = process.cpuUsage(cpu)
        cpuMs = (user + system) / 1000
      }
      // Not at once: the tokens of this step are sampled after the event.
      if (rows >= wanted || e.prefillRows === 0) queueMicrotask(() => ends.map((c) => c.abort()))
    })
    const cpu = process.cpuUsage()
    const start = performance.now()
    const one = async (tokens: readonly number[], i: number): Promise<First> => {
      let found: First | null = null
      const sampling = { temperature: 0, logprobs: 2, logitBias: this.#logitBias }
      const maxTokens = longest === null ? 1 : ROOM
      const signal = longest === null ? {} : { signal: ends[i]!.signal }
      try {
        for await (const part of engine.generate({ tokens, maxTokens, sampling, ...signal })) {
          if (part.kind !== 'token' || found) continue
          const [best, second] = part.top!
          found = { token: part.token, lead: best!.logprob - second!.logprob, ms: performance.now() - start }
        }
      } catch (error) {
        if (!(error instanceof KvasirError && error.code === 'ABORTED')) throw error
      }
      if (!found) throw new KvasirError('NATIVE_FAILED', 'a prompt ended without a token')
      return found
    }
    try {
      const first = await Promise.all(prompts.map(one))
      if (rows !== wanted) throw new KvasirError('NATIVE_FAILED', `${rows} rows were computed instead of ${wanted}`)
      return { rows, prefillMs, cpuMs, first }
    } finally {
      stopListening()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const e of this.#engines.values()) await e.dispose()
  }
}

function sum(list: readonly number[]): number {
  return list.reduce((a, b) => a + b, 0)
}
