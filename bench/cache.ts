/**
 * `kvasir bench cache`: what a prefix that is still stored is worth. Time to first token of a prompt whose whole blocks are all
 * stored, against the same prompt computed; and the memory that chats with one system prompt take together.
 *
 *   memory         the prompt was computed in this engine. Median of several hits
 *   disk           each hit in a new engine, its first request, on a folder that an earlier engine wrote. Where the system can
 *                  do so (Linux, `dd`), the files are dropped from its page cache before, so that they come from the disk
 *   shared-prefix  eight requests that come at once, with one prompt before different questions; cold_ms is the first one's
 *                  time, hit_ms the median of the others', which wait for the first
 *
 * `context` is the prompt's length, or the shared part's. Prompts are whole blocks long, which is a hit's worst case: the last
 * row has to be computed, so the last block is computed, all of its 32 rows.
 *
 * kv_bytes is the most that was in use after a step; kv_bytes_unshared is what one prompt alone takes, times the prompts that
 * are there: the stored one and the hit's in memory, the hit's from disk, eight.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { PAGE_CELLS } from '../src/cache/arena.ts'
import { LocalEngine } from '../src/engine/local.ts'
import { type EngineOptions, modelPath } from '../src/engine/options.ts'
import type { Timings } from '../src/engine/request.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import { randomModelFile } from './cache-folder.ts'
import { Random } from './random-model.ts'
import { median, SPEED_SHAPES } from './speed.ts'

export interface CacheRow {
  readonly case: 'memory' | 'disk' | 'shared-prefix'
  /** Tokens of the prompt; of the part that is shared. */
  readonly context: number
  readonly cold_ms: number
  readonly hit_ms: number
  /** memory, disk: cold_ms over hit_ms. shared-prefix: kv_bytes_unshared over kv_bytes. */
  readonly ratio: number
  readonly kv_bytes: number
  readonly kv_bytes_unshared: number
}

export interface CacheOptions {
  /** `house` or a name of {@link SPEED_SHAPES}. Default qwen2.5-0.5b. */
  readonly shape?: string
  /** Default q8_0. */
  readonly type?: GgmlType
  /** Default 2048, 8192 and 32768. */
  readonly contexts?: readonly number[]
  /** Tokens of the prompt that eight chats share. Default 4096; 0: leave that case out. */
  readonly sharedPrefix?: number
  readonly threads?: number
  readonly onRow?: (row: CacheRow) => void
  readonly onNote?: (note: string) => void
}

const MEMORY_HITS = 7
const DISK_HITS = 3
/** A cold run is repeated, up to so often, while they took less than this together, in milliseconds. */
const COLD_RUNS = 3
const COLD_MS = 20_000
/** Of long computations, how often to say how far they are. */
const NOTE_MS = 30_000
const CHATS = 8
const QUESTION = 40
const ANSWER = 16
/** Two, although the first is all that counts: with one, `ttft_ms` comes without the time of the first. */
const TOKENS = 2

export async function cache(options: CacheOptions = {}): Promise<CacheRow[]> {
  const rows: CacheRow[] = []
  const report = (row: CacheRow) => {
    rows.push(row)
    options.onRow?.(row)
  }
  const path = await modelFile(options)
  for (const context of options.contexts ?? [2048, 8192, 32768]) await prefixHits(path, context, options, report)
  const shared = options.sharedPrefix ?? 4096
  if (shared > 0) report(await sharedPrefix(path, shared, options))
  return rows
}

/** The file of a shape, random weights written on first use; or of the house model. */
async function modelFile({ shape = 'qwen2.5-0.5b', type = 'q8_0', onNote }: CacheOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = SPEED_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
  return await randomModelFile({ ...known, name: `speed-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}

async function prefixHits(path: string, context: number, options: CacheOptions, report: (row: CacheRow) => void) {
  const note = (text: string) => options.onNote?.(`${context} tokens: ${text}`)
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-bench-cache-'))
  try {
    const load = () => Probe.load(path, { ...engineOptions(options), contextLength: context + 256, diskCache: folder })
    let prompt: Int32Array
    let cold: Answer
    let coldMs: number
    {
      await using probe = await load()
      await probe.warmUp()
      prompt = probe.randomTokens(context, context)
      note('computing it')
      const colds: Answer[] = []
      do {
        await probe.engine.clearCache()
        colds.push(await probe.ask(prompt, TOKENS, note))
        await probe.engine.prefixes.flush()
      } while (colds.length < COLD_RUNS && sum(colds.map((c) => c.timings.ttft_ms)) < COLD_MS)
      cold = colds.at(-1)!
      coldMs = median(colds.map((c) => c.timings.ttft_ms))
      note(`${colds.length} x computed, ${seconds(coldMs)} each; asking again`)
      const hits: Answer[] = []
      for (let i = 0; i < MEMORY_HITS; i++) {
        hits.push(checkHit('memory', await probe.ask(prompt), cold))
        await probe.engine.prefixes.flush()
      }
      report(hitRow('memory', coldMs, hits, 2 * cold.peakBytes))
      await writeAll(probe, prompt, note)
    }
    const hits: Answer[] = []
    const dropped = dropFromPageCache(folder)
    note(
      `asking ${DISK_HITS} new engines; ${dropped ? 'blocks come from the disk' : "blocks may come from the system's memory"}`,
    )
    for (let i = 0; i < DISK_HITS; i++) {
      dropFromPageCache(folder)
      await using probe = await load()
      hits.push(checkHit('disk', await probe.ask(prompt), cold))
    }
    report(hitRow('disk', coldMs, hits, cold.peakBytes))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function hitRow(kind: 'memory' | 'disk', coldMs: number, hits: readonly Answer[], unshared: number): CacheRow {
  const hitMs = median(hits.map((h) => h.timings.ttft_ms))
  const { prompt_tokens: context } = hits[0]!.timings
  return {
    ...{ case: kind, context, cold_ms: coldMs, hit_ms: hitMs, ratio: coldMs / hitMs },
    ...{ kv_bytes: Math.max(...hits.map((h) => h.peakBytes)), kv_bytes_unshared: unshared },
  }
}

/**
 * The disk drops blocks that come faster than it can write them, and takes them when the prompt is used again: asks for as
 * long as there is more to write.
 */
async function writeAll(probe: Probe, prompt: Int32Array, note: (text: string) => void): Promise<void> {
  const { prefixes, info } = probe.engine
  const wanted = Math.floor(prompt.length / PAGE_CELLS) * PAGE_CELLS * info.kvBytesPerToken
  for (let before = -1; before < prefixes.diskBytes; ) {
    before = prefixes.diskBytes
    await probe.ask(prompt)
    await prefixes.flush()
  }
  if (prefixes.problem) throw new Error(prefixes.problem)
  if (prefixes.diskBytes < wanted) note(`only ${prefixes.diskBytes} of ${wanted} bytes reached the disk`)
}

async function sharedPrefix(path: string, context: number, options: CacheOptions): Promise<CacheRow> {
  const length = context + QUESTION + ANSWER
  // Room for all of them unshared: a scheduler admits a request when its whole prompt would fit.
  const contextLength = (CHATS + 1) * (length + 256)
  await using probe = await Probe.load(path, { ...engineOptions(options), contextLength })
  await probe.warmUp()
  const system = probe.randomTokens(context, 1)
  const prompts = Array.from({ length: CHATS }, (_, i) =>
    Int32Array.from([...system, ...probe.randomTokens(QUESTION, 2 + i)]),
  )
  options.onNote?.(`${CHATS} chats with one prompt of ${context} tokens: one alone, then all`)
  const alone = await probe.ask(prompts[0]!, ANSWER)
  await probe.engine.clearCache()
  const answers = await Promise.all(prompts.map((p) => probe.ask(p, ANSWER)))
  checkToken('the first of eight', answers[0]!, alone)
  const [first, ...others] = answers.map((a) => a.timings)
  const shared = Math.max(...answers.map((a) => a.peakBytes))
  const unshared = CHATS * alone.peakBytes
  const cached = others.map((t) => t.cached_tokens)
  options.onNote?.(`tokens that the others found stored: ${cached.join(', ')}`)
  return {
    ...{ case: 'shared-prefix', context, cold_ms: first!.ttft_ms, hit_ms: median(others.map((t) => t.ttft_ms)) },
    ...{ ratio: unshared / shared, kv_bytes: shared, kv_bytes_unshared: unshared },
  }
}

interface Answer {
  readonly token: number
  readonly timings: Timings
  /** Most bytes of keys and values in use after any step until its end. */
  readonly peakBytes: number
}

/** An engine, asked greedily. */
class Probe implements AsyncDisposable {
  readonly engine: LocalEngine
  readonly #bias: ReadonlyMap<number, number>

  private constructor(engine: LocalEngine) {
    this.engine = engine
    this.#bias = withoutEnd(engine)
  }

  static async load(path: string, options: EngineOptions): Promise<Probe> {
    return new Probe(await LocalEngine.load(path, options))
  }

  /** First runs do not count: page faults, graphs, thread counts. */
  async warmUp(): Promise<void> {
    await this.ask(this.randomTokens(Math.min(512, this.engine.info.contextLength - TOKENS), 7))
    await this.engine.clearCache()
  }

  randomTokens(length: number, seed: number): Int32Array {
    return randomTokens(this.engine, length, seed)
  }

  async ask(tokens: Int32Array, maxTokens = TOKENS, onNote?: (note: string) => void): Promise<Answer> {
    const { engine } = this
    let peakBytes = 0
    let token = -1
    let rows = 0
    let notedMs = performance.now()
    const stop = engine.onEvent((event) => {
      if (event.kind !== 'step-end') return
      peakBytes = Math.max(peakBytes, engine.store.usedBytes)
      rows += event.prefillRows
      if (performance.now() - notedMs < NOTE_MS) return
      notedMs = performance.now()
      onNote?.(`computed ${rows} rows`)
    })
    try {
      const sampling = { temperature: 0, logitBias: this.#bias }
      for await (const part of engine.generate({ tokens, maxTokens, sampling })) {
        if (part.kind === 'end') return { token, timings: part.timings, peakBytes }
        if (token < 0) token = part.token
      }
      throw new Error('an answer had no end')
    } finally {
      stop()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.dispose()
  }
}

/** Forbids the tokens that end an answer. */
export function withoutEnd({ model: { tokenizer } }: LocalEngine): ReadonlyMap<number, number> {
  const ends = Array.from({ length: tokenizer.vocabSize }, (_, t) => t).filter((t) => tokenizer.isEndOfGeneration(t))
  return new Map(ends.map((t) => [t, Number.NEGATIVE_INFINITY]))
}

/** Seeded; none of the vocabulary's first 259, which are controls and bytes. */
export function randomTokens(engine: LocalEngine, length: number, seed: number): Int32Array {
  const random = new Random(seed)
  const words = engine.info.vocabSize - 259
  return Int32Array.from({ length }, () => 259 + Math.floor(random.uniform() * words))
}

function engineOptions({ threads }: CacheOptions): EngineOptions {
  return { threads: threads ?? availableParallelism() }
}

/** The hit; not a hit unless every whole block before the last row was stored, and its answer begins as the cold one's. */
function checkHit(kind: 'memory' | 'disk', hit: Answer, cold: Answer): Answer {
  const { cached_tokens, prompt_tokens } = hit.timings
  const whole = Math.floor((prompt_tokens - 1) / PAGE_CELLS) * PAGE_CELLS
  if (cached_tokens !== whole)
    throw new Error(`${kind}: ${cached_tokens} of ${prompt_tokens} tokens were found, instead of ${whole}`)
  checkToken(kind, hit, cold)
  return hit
}

function checkToken(what: string, got: Answer, wanted: Answer): void {
  if (got.token !== wanted.token)
    throw new Error(`${what}: the answer begins with token ${got.token} instead of ${wanted.token}`)
}

/** So that reading them reads the disk; false where that cannot be done. */
function dropFromPageCache(folder: string): boolean {
  if (process.platform !== 'linux') return false
  try {
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true }))
      if (entry.isFile())
        execFileSync('dd', [`if=${join(entry.parentPath, entry.name)}`, 'iflag=nocache', 'count=0', 'status=none'])
    return true
  } catch {
    return false
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0)
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 0)} s`
}
