/**
 * Lossless features in pairs, on the house model: whatever two of them do together, no greedy token changes.
 *
 * Tokens are compared up to the first near tie. A product of one row and one of many rows are computed by other kernels,
 * which round differently, in libllama as here. Measured on 64 tokens of a prompt, evaluated as one batch and token by
 * token (largest difference of a logit of the last row; the logits span 21.5):
 *
 *   libllama   0.157
 *   Kvasir     0.150; the batch's logits are libllama's bit for bit
 *
 * The first test measures both again.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Peer } from '../bench/peer.ts'
import { PAGE_CELLS } from '../src/cache/arena.ts'
import { checkStore } from '../src/cache/check.ts'
import type { BlockRef } from '../src/cache/column.ts'
import { KvStore } from '../src/cache/store.ts'
import type { EngineApi } from '../src/engine/api.ts'
import { LocalEngine } from '../src/engine/local.ts'
import { type EngineOptions, modelPath } from '../src/engine/options.ts'
import { EngineClient } from '../src/engine/process/client.ts'
import type { GenerateRequest } from '../src/engine/request.ts'
import { Sequence } from '../src/engine/sequence.ts'
import { Executor } from '../src/executor/run.ts'
import { storeShape } from '../src/executor/store-shape.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { loadNative } from '../src/ggml/library.ts'
import { liveNatives } from '../src/ggml/owned.ts'
import { Model } from '../src/model/model.ts'
import { fragment } from './soak/fragmented-engine.ts'

const FEATURES = {
  gather: 'memory in pieces: rows are gathered',
  view: 'memory in one piece: rows are read where they lie',
  prefix: 'a prefix that an earlier request left',
  fork: 'two samples of one prompt',
  batch2: 'two requests at once',
  batch8: 'eight requests at once',
  chunk32: 'steps of 32 rows',
  chunk100: 'steps of 100 rows',
  session: 'a session saved and loaded by another engine',
  disk: 'blocks on the disk, found by another engine',
  host: 'blocks that were moved to ordinary memory',
  swap: 'preemption, blocks kept in a tier',
  recompute: 'preemption, blocks lost',
  restart: 'an engine process that was killed',
} as const
type Feature = keyof typeof FEATURES
type Pair = readonly [Feature, Feature]

/** What cannot be had together. */
const EXCLUSIVE: readonly Pair[] = [
  ['gather', 'view'],
  ['batch2', 'batch8'],
  ['chunk32', 'chunk100'],
  ['swap', 'recompute'],
  ['host', 'recompute'], // with a tier nothing is lost
  ['disk', 'recompute'],
  ['restart', 'recompute'], // it comes back by its disk tier
]

/** In nats: twice the noise, since two logits may move apart. */
const NEAR_TIE = 0.35
const MOST_TOKENS = 24
const greedy = { temperature: 0 }
const FRAGMENTED = new URL('./soak/fragmented-engine.ts', import.meta.url).href

const folder = mkdtempSync(join(tmpdir(), 'kvasir-pairs-'))
let natives: Record<string, number>
before(async () => {
  process.env['KVASIR_CHECK'] = '1'
  await loadNative()
  natives = liveNatives()
  await learn()
})
after(() => {
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

// what is asked, and the right answers --------------------------------------------------------------------------------

interface Question {
  readonly request: GenerateRequest
  readonly right: number[]
}

const names = ['Karin', 'Oscar', 'Vera', 'Martin', 'Julia', 'Felix', 'Nora', 'Gordon']
const pets = ['hamster', 'parrot', 'rabbit', 'turtle', 'canary', 'goat', 'hamster', 'rabbit']
/** More than four pages, so that a table in pieces is gathered. Wrong rows give wrong pets. */
const story = names
  .map((n, i) => `${n} Osford keeps a ${pets[i]} as a pet. The captain stood beside a field.`)
  .join(' ')
const about = (name: string) => [{ role: 'user', content: `${story} Which animal does ${name} Osford keep as a pet?` }]

let mains: Question[]
/** Long answers, which need more memory than there is. */
let crowd: Question[]
let pageBytes: number

async function learn(): Promise<void> {
  const engine = await LocalEngine.load('house', { threads: 1, contextLength: 1024 })
  pageBytes = engine.store.rowArena(0).pageBytes
  const { tokenizer } = engine.model
  const ends = new Set(
    Array.from({ length: tokenizer.vocabSize }, (_, t) => t).filter((t) => tokenizer.isEndOfGeneration(t)),
  )
  const steady = async (request: GenerateRequest, most: number): Promise<number[]> => {
    await engine.clearCache()
    const right: number[] = []
    const sampling = { ...request.sampling, logprobs: 8 }
    for await (const part of engine.generate({ ...request, sampling, maxTokens: most })) {
      if (part.kind === 'end') break
      const [first, second] = part.top!.filter((t) => !request.sampling?.logitBias || !ends.has(t.token))
      if (first!.logprob - second!.logprob < NEAR_TIE) break
      right.push(part.token)
    }
    return right
  }
  mains = []
  for (const name of names) {
    const request = { messages: about(name), sampling: greedy }
    mains.push({ request, right: await steady(request, MOST_TOKENS) })
  }
  const answers = mains.map((q) => tokenizer.decode(q.right))
  assert.ok(answers.filter((a) => pets.some((p) => a.includes(p))).length >= 6, `${answers}`)
  crowd = []
  for (let i = 0; i < 6; i++) {
    const sampling = { ...greedy, logitBias: new Map([...ends].map((t) => [t, -1e4])) }
    const prompt = `${names[i]} ${'was known for the harbour '.repeat(6 + i)}`
    const request = { prompt, sampling, maxTokens: 90, salt: `crowd ${i}` }
    crowd.push({ request, right: await steady(request, 90) })
  }
  await engine.dispose()
}

/** @returns prompt tokens that were cached */
async function ask(engine: EngineApi, { request, right }: Question, more: Partial<GenerateRequest>): Promise<number> {
  const samples = Array.from({ length: more.samples ?? 1 }, () => [] as number[])
  let cached = 0
  for await (const part of engine.generate({ maxTokens: Math.max(1, right.length), ...request, ...more }))
    if (part.kind === 'token') samples[part.sample ?? 0]!.push(part.token)
    else cached = part.timings.cached_tokens
  for (const tokens of samples) assert.deepEqual(tokens.slice(0, right.length), right)
  return cached
}

// an engine and what is done with it ----------------------------------------------------------------------------------

interface Seen {
  /** Steps of a table of five pages or more: in up to four pieces, or in more. */
  views: number
  gathers: number
  loadedPages: number
  /** Loads that were expected to take longer than to compute the pages again: on a busy machine that can be so. */
  declines: number
  offloadedPages: number
}

class Opened {
  readonly engine: LocalEngine | EngineClient
  readonly seen: Seen
  /** Sequences that hold pages to keep memory in pieces. */
  readonly #held: number

  private constructor(engine: LocalEngine | EngineClient, seen: Seen, held: number) {
    this.engine = engine
    this.seen = seen
    this.#held = held
  }

  static async open(options: EngineOptions, has: (f: Feature) => boolean, seen: Seen): Promise<Opened> {
    let engine: LocalEngine | EngineClient
    if (has('restart')) engine = await EngineClient.loadWith(has('gather') ? FRAGMENTED : null, 'house', options)
    else engine = await LocalEngine.load('house', options)
    const held = engine instanceof LocalEngine && has('gather') ? fragment(engine.store) : 0
    engine.onEvent((e) => {
      if (e.kind === 'pages-load') seen.loadedPages += e.pages
      else if (e.kind === 'load-decline') seen.declines++
      else if (e.kind === 'pages-offload') seen.offloadedPages += e.pages
      else if (e.kind === 'step-end' && engine instanceof LocalEngine)
        for (const s of engine.store.sequences.values()) {
          const column = s.columns[0]!
          if (column.end > 4 * PAGE_CELLS) seen[column.runs.length > 4 ? 'gathers' : 'views']++
        }
    })
    return new Opened(engine, seen, held)
  }

  async close(): Promise<void> {
    const { engine } = this
    if (engine instanceof LocalEngine) {
      checkStore(engine.store, engine.prefixes.check())
      const { running, waiting } = await engine.status()
      assert.deepEqual([running, waiting, engine.store.sequences.size], [0, 0, this.#held])
    }
    await engine.dispose()
  }
}

async function runPair(pair: Pair, index: number): Promise<void> {
  const has = (f: Feature) => pair.includes(f)
  const pressed = has('swap') || has('recompute')
  const tier = has('host') || (has('swap') && !has('disk') && !has('restart')) ? 64 : 0
  const usable = pressed ? 24 : 128
  const diskCache = has('disk') || has('restart') ? join(folder, `disk ${index}`) : null
  const options: EngineOptions = {
    ...{ threads: 1, contextLength: 640, hostCacheBytes: tier * pageBytes },
    kvMemory: (usable * (has('gather') ? 2 : 1) + tier) * pageBytes,
    tokenBudget: has('chunk32') ? 32 : has('chunk100') ? 100 : 512,
    ...(diskCache ? { diskCache } : {}),
  }
  const atOnce = has('batch8') ? 8 : has('batch2') ? 2 : 1
  const questions = mains.slice(0, atOnce === 8 ? 8 : 2)
  const seen: Seen = { views: 0, gathers: 0, loadedPages: 0, declines: 0, offloadedPages: 0 }
  let opened = await Opened.open(options, has, seen)
  let preemptions = 0

  /** All questions; least number of prompt tokens that were cached. */
  const round = async (): Promise<number> => {
    const more = (i: number): Partial<GenerateRequest> => ({
      ...(has('fork') ? { samples: 2 } : {}),
      // Only what is to be shared is. A session is of nobody's salt.
      ...(has('prefix') || i === 0 ? {} : { salt: `${i}` }),
    })
    const { engine } = opened
    const crowded = pressed ? crowd.map((q) => ask(engine, q, {})) : []
    const cached: number[] = []
    for (let i = 0; i < questions.length; i += atOnce)
      cached.push(...(await Promise.all(questions.slice(i, i + atOnce).map((q, k) => ask(engine, q, more(i + k))))))
    await Promise.all(crowded)
    preemptions += (await engine.status()).totals.preemptions
    return Math.min(...cached)
  }

  if (has('prefix')) await ask(opened.engine, mains[7]!, {})
  const first = await round()
  if (has('prefix') && !pressed) assert.ok(first >= 4 * PAGE_CELLS, `${first} tokens of the prefix were cached`)

  const path = join(folder, `session ${index}`)
  if (has('session')) {
    await ask(opened.engine, mains[0]!, {})
    await opened.engine.saveSession(path, mains[0]!.request)
  }
  if (has('restart')) await killAndWait(opened.engine as EngineClient, diskCache!)
  else if (has('session') || has('disk')) {
    await opened.close()
    opened = await Opened.open(options, has, seen)
  }
  const { engine } = opened
  if (has('session')) {
    await engine.loadSession(path)
    const cached = await ask(engine, mains[0]!, {})
    assert.ok(cached >= 4 * PAGE_CELLS, `${cached} tokens of the session were cached`)
  }
  let second = await round()
  if (has('host') && engine instanceof LocalEngine) {
    engine.prefixes.evict(1000, 'admission')
    scribble(engine.store)
    second = await round()
  }
  await opened.close()

  // That each feature was really at work.
  if (!pressed && (!has('session') || has('disk') || has('restart')))
    assert.ok(second >= 4 * PAGE_CELLS || seen.declines > 0, `${second}`)
  if ((has('disk') || has('restart') || has('host')) && !pressed) assert.ok(seen.loadedPages > 0, 'nothing was loaded')
  if (has('host') && !has('restart')) assert.ok(seen.offloadedPages > 0, 'nothing was moved')
  if (has('gather') && !has('restart')) assert.ok(seen.gathers > 0 && seen.views === 0, JSON.stringify(seen))
  if (has('view') && !has('restart')) assert.ok(seen.views > 0, JSON.stringify(seen))
  if (pressed) assert.ok(preemptions > 0, 'nothing was preempted')
  if (has('swap')) assert.ok(seen.loadedPages > 0, 'nothing came back from a tier')
}

/** Overwrites all free pages: else a block that is not loaded could still find its rows where they were. */
function scribble(store: KvStore): void {
  const rows = new Uint8Array(pageBytes).fill(0x3c)
  const taken: BlockRef[] = []
  for (let page = store.takePage(0, null); page; page = store.takePage(0, page.page)) taken.push(page)
  for (const page of taken) {
    store.rowArena(0).writePage(page.page, rows)
    store.releasePage(page)
  }
}

/** Ends the process once what it computed is on the disk; the next request finds another one. */
async function killAndWait(engine: EngineClient, diskCache: string): Promise<void> {
  const { kv } = await engine.status()
  const stored = () =>
    readdirSync(diskCache, { recursive: true }).filter((name) => String(name).endsWith('.kvb')).length
  const deadline = performance.now() + 5000
  while (stored() < kv.prefixBytes / pageBytes) {
    assert.ok(performance.now() < deadline, `${stored()} blocks are on the disk, not ${kv.prefixBytes / pageBytes}`)
    await sleep(5)
  }
  const { pid } = engine
  process.kill(pid!, 'SIGKILL')
  while (engine.pid === pid) await sleep(5)
  assert.equal((await engine.status()).totals.restarts, 1)
}

// the tests -----------------------------------------------------------------------------------------------------------

describe('batch shapes', () => {
  it('change logits no more than they do in libllama', async () => {
    const path = modelPath('house')
    const shape = { cells: 256, keyType: 'f16', valueType: 'f16' } as const
    using model = await Model.load(path, () => ({ device: cpuDevice(), contextLength: 256 }))
    const prompt = model.tokenizer.encode(story, { addSpecial: true, parseSpecial: true }).slice(0, 64)
    assert.equal(prompt.length, 64)
    using peer = await Peer.load(path, { contextLength: 256, chunk: 64, threads: 1 })
    const theirBatch = peer.eval(prompt)
    peer.clear()
    let theirSteps = theirBatch
    for (const token of prompt) theirSteps = peer.eval(Int32Array.of(token))
    const theirs = largest(theirBatch, theirSteps)

    using store = new KvStore(storeShape(model.config, { ...shape, lowering: 'auto' }, model.device), model.device)
    using executor = new Executor(model, store, { threads: 1, lowering: 'auto' })
    using batch = new Sequence(executor, 64)
    using steps = new Sequence(executor, 64)
    const ourBatch = (await batch.append(prompt, 64)).slice()
    const ours = largest(ourBatch, (await steps.append(prompt, 1)).slice())
    const range = Math.max(...theirBatch) - Math.min(...theirBatch)
    assert.ok(theirs > 0 && range > 1, 'nothing was measured')
    // The same kernels, and attention that is no less exact: the same noise, up to chance.
    assert.ok(ours <= 2 * theirs, `ours ${ours}, libllama's ${theirs}, of a range of ${range}`)
    if (process.env['KVASIR_DEBUG']) console.log({ ours, theirs, range, toTheirs: largest(ourBatch, theirBatch) })
  })
})

function largest(a: Float32Array, b: Float32Array): number {
  let worst = 0
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!)
    if (!(d <= worst)) worst = d // NaN must not pass for exact
  }
  return worst
}

const features = Object.keys(FEATURES) as Feature[]
const pairs = features.flatMap((a, i) => features.slice(i + 1).map((b): Pair => [a, b]))
const isPossible = (p: Pair) => !EXCLUSIVE.some((e) => e.every((f) => p.includes(f)))

describe('features in pairs change no greedy token', () => {
  // By default every other pair, in which each feature meets half of the rest; all of them with KVASIR_LONG=1.
  const step = process.env['KVASIR_LONG'] ? 1 : 2
  for (const [index, pair] of pairs.filter(isPossible).entries())
    if (index % step === 0) it(pair.join(' and '), () => runPair(pair, index))
})
