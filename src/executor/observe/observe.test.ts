/** Observations on a real model, against attention computed in float64 from the same queries and keys. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../../bench/random-model.ts'
import type { CacheType } from '../../cache/arena.ts'
import type { KvSequence } from '../../cache/sequence.ts'
import { KvStore } from '../../cache/store.ts'
import type { KvasirError } from '../../contract/errors.ts'
import type { ObservedLayer, Statistic } from '../../contract/observation.ts'
import type { WorkItem, WorkResult } from '../../contract/work-item.ts'
import { Backend, SingleRunner } from '../../ggml/backend.ts'
import { Context } from '../../ggml/context.ts'
import { cpuDevice } from '../../ggml/device.ts'
import { f32, u32 } from '../../ggml/gguf/index.ts'
import { Graph } from '../../ggml/graph.ts'
import { loadNative } from '../../ggml/library.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { Model } from '../../model/model.ts'
import type { LoweringName } from '../lower/lowering.ts'
import { Executor } from '../run.ts'
import { storeShape } from '../store-shape.ts'
import { reduce } from './build.ts'
import { attentionOf, type Reference, referenceOf } from './reference.fixture.ts'
import { OBSERVED_ROWS, type Observe, STATISTICS } from './wanted.ts'

const CONTEXT = 512
const LAYERS = 4
const HEADS = 4
const folder = mkdtempSync(join(tmpdir(), 'kvasir-observe-'))
let model: Model
let backend: Backend
let runner: SingleRunner
let natives: Record<string, number>

// Soft caps, windows, GQA, as in gemma2; a low cap and a short window, so that both change every number.
before(async () => {
  await loadNative()
  natives = liveNatives()
  const path = join(folder, 'gemma2.gguf')
  await writeRandomModel(path, {
    ...{ name: 'test', architecture: 'gemma2', layers: LAYERS, width: 128, heads: HEADS, kvHeads: 2, headDim: 32 },
    ...{ ffWidth: 256, vocab: 512, type: 'f32', tied: true },
    keys: { 'attention.sliding_window': u32(40), attn_logit_softcapping: f32(2), final_logit_softcapping: f32(30) },
  })
  model = await Model.load(path, () => ({ device: cpuDevice(), contextLength: CONTEXT }))
  backend = new Backend(cpuDevice())
  runner = new SingleRunner(backend)
})
after(() => {
  runner[Symbol.dispose]()
  backend.dispose()
  model[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

class Bench implements Disposable {
  readonly store: KvStore
  readonly executor: Executor
  readonly rows: KvSequence

  constructor(lowering: LoweringName = 'auto', type: CacheType = 'f32', expectedRows = CONTEXT) {
    const options = { cells: 2 * CONTEXT, keyType: type, valueType: type, lowering }
    this.store = new KvStore(storeShape(model.config, options, model.device), model.device)
    this.executor = new Executor(model, this.store, { threads: 1, lowering })
    this.rows = this.store.create(expectedRows)
  }

  /** Appends rows to a sequence; positions go on behind those of its longest column. */
  item(tokens: Int32Array, observe: Observe | null, change: Partial<WorkItem> = {}, rows = this.rows): WorkItem {
    const next = Math.max(-1, ...rows.columns.flatMap((c) => [...c.positions.subarray(0, c.end)])) + 1
    const positions = Int32Array.from(tokens, (_, i) => next + i)
    this.store.append(rows, positions)
    return {
      ...{ sequence: rows.id, positions, store: { kind: 'tail' }, layers: { from: 0, to: LAYERS } },
      ...{ input: { kind: 'tokens', tokens }, mask: { kind: 'causal' } },
      outputs: { logits: [tokens.length - 1], hidden: false, ...(observe ? { observe } : {}) },
      ...change,
    }
  }

  async run(work: WorkItem): Promise<WorkResult> {
    return (await this.executor.run({ items: [work] })).items[0]!
  }

  /** Outlives the next step. */
  async seen(work: WorkItem): Promise<ObservedLayer[]> {
    return copyOf((await this.run(work)).observed!)
  }

  async reference(work: WorkItem): Promise<Reference> {
    return await referenceOf(this.executor, runner, work)
  }

  [Symbol.dispose](): void {
    this.executor[Symbol.dispose]()
    this.store[Symbol.dispose]()
  }
}

function copyOf(layers: readonly ObservedLayer[]): ObservedLayer[] {
  return layers.map(({ keys, positions, statistics }) => ({
    keys: [...keys],
    positions: positions.map((p) => p.slice()),
    statistics: Object.fromEntries(Object.entries(statistics).map(([name, data]) => [name, data.slice()])),
  }))
}

const prompt = Int32Array.from({ length: 150 }, (_, i) => 3 + ((i * 7919) % 500))
const sees = (from: number, to: number, ...statistics: Statistic[]): Observe => ({ rows: { from, to }, statistics })

/** Largest difference, relative to the largest number of `want`. */
function worst(got: Float32Array, want: ArrayLike<number>): number {
  assert.equal(got.length, want.length)
  let off = 0
  let most = 0
  for (let i = 0; i < got.length; i++) {
    assert.ok(Number.isFinite(got[i]), `number ${i} is ${got[i]}`)
    off = Math.max(off, Math.abs(got[i]! - want[i]!))
    most = Math.max(most, Math.abs(want[i]!))
  }
  return off / most
}

/** f32 sums of products, through four layers; worst of all cases below: 5e-5. */
const ROUNDING = 1e-4

function same(got: readonly ObservedLayer[], want: readonly ObservedLayer[], bound: number): void {
  assert.equal(got.length, want.length)
  for (const [l, layer] of got.entries()) {
    assert.deepEqual(layer.keys, want[l]!.keys)
    assert.deepEqual(layer.positions, want[l]!.positions)
    assert.deepEqual(Object.keys(layer.statistics).sort(), Object.keys(want[l]!.statistics).sort())
    for (const [name, data] of Object.entries(layer.statistics)) {
      const off = worst(data, want[l]!.statistics[name as Statistic]!)
      assert.ok(off <= bound, `layer ${l}, ${name}: ${off}`)
    }
  }
}

/** Runs an item and compares what it saw with the reference. */
async function check(b: Bench, work: WorkItem, bound = ROUNDING): Promise<void> {
  const reference = await b.reference(work)
  const got = await b.seen(work)
  same(got, attentionOf(reference, work), bound)
  const { from, to } = work.outputs.observe!.rows
  for (const { keys, statistics } of got)
    if (statistics.sum)
      for (let h = 0; h < HEADS; h++) {
        const n = Math.max(...keys)
        const total = statistics.sum.subarray(h * n, (h + 1) * n).reduce((a, x) => a + x, 0)
        assert.ok(Math.abs(total - (to - from)) < 1e-4 * (to - from), `${total} of ${to - from} rows`)
      }
}

describe('what rows look at', () => {
  const cases: Record<string, Observe> = {
    'the last rows': sees(134, 150, 'sum', 'variance', 'entropy'),
    'rows in the middle': sees(40, 57, 'variance', 'sum'),
    'one row': sees(90, 91, 'entropy', 'sum'),
    'as many rows as go at once': sees(80, 144, 'variance', 'entropy'),
    'all rows, in blocks': sees(0, 150, 'sum', 'entropy'),
  }
  for (const [name, observe] of Object.entries(cases))
    for (const lowering of ['auto', 'grouped'] as const)
      it(`${name} of a chunk (${lowering})`, async () => {
        using b = new Bench(lowering)
        await check(b, b.item(prompt, observe))
      })

  it('rows of a second chunk and of a decode step, with every lowering', async () => {
    for (const lowering of ['auto', 'grouped', 'flash'] as const) {
      using b = new Bench(lowering)
      await b.run(b.item(prompt.slice(0, 70), null))
      await check(b, b.item(prompt.slice(70, 99), sees(3, 29, ...STATISTICS)))
      await check(b, b.item(prompt.slice(99, 100), sees(0, 1, 'sum', 'entropy')))
      // Graphs that are run again, for other numbers of keys.
      for (let at = 100; at < 104; at++) await check(b, b.item(prompt.slice(at, at + 1), sees(0, 1, 'sum')))
    }
  })

  // Beside f16 keys products round the queries to f16, beside q8_0 ones to q8_0.
  for (const [type, bound] of [
    ['f16', 2e-3],
    ['q8_0', 2e-2],
  ] as const)
    it(`${type} keys`, async () => {
      for (const lowering of ['auto', 'flash'] as const) {
        using b = new Bench(lowering, type)
        await check(b, b.item(prompt, sees(100, 150, 'sum', 'entropy')), bound)
        await check(b, b.item(Int32Array.of(9), sees(0, 1, 'sum')), bound)
      }
    })

  it('some layers only', async () => {
    using b = new Bench()
    const whole = b.item(prompt, sees(100, 116, 'sum', 'variance'))
    const seen = await b.seen(whole)
    const lower = { ...whole, layers: { from: 0, to: 3 }, outputs: { ...whole.outputs, logits: [], hidden: true } }
    const { hidden, observed } = await b.run(lower)
    const rows = hidden!.slice()
    same(observed!, seen.slice(0, 3), 0)
    const upper = { ...whole, layers: { from: 3, to: 4 }, input: { kind: 'hidden', rows } as const }
    same(await b.seen(upper), seen.slice(3), 0)
  })
})

describe('tables in pieces', () => {
  for (const lowering of ['auto', 'flash'] as const)
    for (const pages of [1, 2])
      it(`runs of ${pages} pages (${lowering})`, async () => {
        using b = new Bench(lowering, 'f32', 0)
        const other = b.store.create(0)
        for (let at = 0; at < 128; at += 32 * pages) {
          await check(b, b.item(prompt.slice(at, at + 32 * pages), sees(7, 30, 'sum', 'variance')))
          b.store.append(other, new Int32Array(32))
        }
        await check(b, b.item(prompt.slice(128), sees(6, 22, ...STATISTICS)))
        await check(b, b.item(Int32Array.of(9), sees(0, 1, 'sum')))
        assert.equal(b.rows.columns[0]!.runs.length, Math.ceil(5 / pages))
      })

  it('rows with holes between them, closed and not', async () => {
    using b = new Bench()
    await b.run(b.item(prompt.slice(0, 100), null))
    b.store.drop(b.rows, 0, [4, 5, 6, 50, 70])
    await check(b, b.item(prompt.slice(100, 120), sees(0, 20, ...STATISTICS)))
    b.store.compact(b.rows, 0)
    await check(b, b.item(prompt.slice(120), sees(0, 30, ...STATISTICS)))
  })

  for (const lowering of ['auto', 'flash'] as const)
    it(`heads with rows of their own (${lowering})`, async () => {
      using b = new Bench(lowering)
      await b.run(b.item(prompt.slice(0, 100), null))
      b.store.makeRagged(b.rows)
      const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)
      b.store.drop(b.rows, 1, range(3, 90))
      b.store.drop(b.rows, 4, range(20, 31))
      b.store.compact(b.rows, 4)
      b.store.drop(b.rows, 7, range(0, 64))
      const work = b.item(prompt.slice(100, 120), sees(2, 18, ...STATISTICS))
      await check(b, work)
      await check(b, b.item(Int32Array.of(9), sees(0, 1, 'sum')))
      const [first] = await b.seen(b.item(prompt.slice(0, 80), sees(0, 80, 'sum', 'entropy')))
      assert.deepEqual(first!.keys, [201, 114])
      assert.equal(first!.positions.length, 2)
    })
})

describe('rows that are in the cache already', () => {
  const window = sees(0, 16, ...STATISTICS)
  const again = (rows: KvSequence, change: Partial<WorkItem>): WorkItem => ({
    ...{ sequence: rows.id, positions: Int32Array.from({ length: 16 }, (_, i) => 134 + i) },
    ...{ store: { kind: 'kept' }, layers: { from: 0, to: LAYERS }, mask: { kind: 'causal' } },
    ...{ input: { kind: 'tokens', tokens: prompt.slice(134) } },
    outputs: { logits: [], hidden: false, observe: window },
    ...change,
  })

  for (const type of ['f32', 'f16'] as const)
    for (const lowering of ['auto', 'flash'] as const)
      it(`are seen as when they were first computed (${lowering}, ${type})`, async () => {
        using b = new Bench(lowering, type)
        const first = await b.seen(b.item(prompt, sees(134, 150, ...STATISTICS)))
        const bound = type === 'f32' ? ROUNDING : 5e-3
        const cells = Array.from({ length: 16 }, (_, i) => 134 + i)
        same(await b.seen(again(b.rows, { store: { kind: 'cells', cells } })), first, bound)
        same(await b.seen(again(b.rows, {})), first, bound)
      })

  it('keep every bit of the cache when they are not stored', async () => {
    using b = new Bench('auto', 'f16')
    await b.run(b.item(prompt, null))
    const pages = () => b.rows.columns[0]!.blocks.map((block) => b.store.home.readPage(block.page))
    const before = pages()
    // Tokens that are not those of the cache: stored, they would change it.
    const others = again(b.rows, { input: { kind: 'tokens', tokens: new Int32Array(16).fill(77) } })
    assert.notDeepEqual(await b.seen(others), await b.seen(again(b.rows, {})))
    assert.deepEqual(pages(), before)
  })

  it('beside others that are stored, and in ragged tables', async () => {
    using b = new Bench()
    const first = await b.seen(b.item(prompt, sees(134, 150, ...STATISTICS)))
    const other = b.store.create(CONTEXT)
    const logits = (await b.run(b.item(prompt.slice(0, 90), null, {}, other))).logits!.slice()
    b.store.truncate(other, 0)
    const { items } = await b.executor.run({ items: [again(b.rows, {}), b.item(prompt.slice(0, 90), null, {}, other)] })
    same(items[0]!.observed!, first, ROUNDING)
    assert.equal(items[1]!.observed, null)
    assert.ok(worst(items[1]!.logits!, logits) < ROUNDING)
    b.store.makeRagged(b.rows)
    const ragged = await b.seen(again(b.rows, {}))
    for (const [l, layer] of ragged.entries())
      for (const s of STATISTICS) assert.ok(worst(layer.statistics[s]!, first[l]!.statistics[s]!) < ROUNDING)
  })

  it('the same row several times has no variance', async () => {
    using b = new Bench()
    await b.run(b.item(prompt, null))
    const row = {
      positions: new Int32Array(5).fill(140),
      input: { kind: 'tokens', tokens: new Int32Array(5).fill(8) } as const,
    }
    const observe = sees(0, 5, 'sum', 'variance')
    const seen = await b.seen(again(b.rows, { ...row, outputs: { logits: [], hidden: false, observe } }))
    for (const { statistics } of seen)
      for (const [i, v] of statistics.variance!.entries()) assert.ok(v <= (1e-6 * statistics.sum![i]!) ** 2)
  })

  it('that are not there are refused, and so is asking for nothing', async () => {
    using b = new Bench()
    await b.run(b.item(prompt, null))
    const refused = (work: WorkItem, text: RegExp) =>
      assert.rejects(b.run(work), (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && text.test(e.message))
    await refused(again(b.rows, { positions: Int32Array.from({ length: 16 }, (_, i) => 140 + i) }), /position 150/)
    await refused(again(b.rows, { outputs: { logits: [], hidden: false } }), /nothing wanted/)
  })
})

describe('steps with observations', () => {
  it('give the same logits, bit for bit', async () => {
    for (const lowering of ['auto', 'grouped', 'flash'] as const)
      for (const type of ['f32', 'f16'] as const) {
        const logits = async (observes: boolean) => {
          using b = new Bench(lowering, type)
          const out: Float32Array[] = []
          const step = async (tokens: Int32Array, observe: Observe) =>
            out.push((await b.run(b.item(tokens, observes ? observe : null))).logits!.slice())
          await step(prompt.slice(0, 100), sees(0, 100, 'sum', 'entropy'))
          await step(prompt.slice(100, 130), sees(5, 30, ...STATISTICS))
          await step(prompt.slice(130, 131), sees(0, 1, 'sum'))
          b.store.makeRagged(b.rows)
          await step(prompt.slice(131, 140), sees(0, 9, 'sum', 'variance'))
          await step(prompt.slice(140, 141), sees(0, 1, 'entropy'))
          return out
        }
        assert.deepEqual(await logits(true), await logits(false))
      }
  })

  it('of several items, of which some observe', async () => {
    using b = new Bench()
    const others = [b.store.create(CONTEXT), b.store.create(CONTEXT), b.store.create(CONTEXT)]
    const items = () => [
      b.item(prompt.slice(0, 80), sees(60, 80, ...STATISTICS), {}, b.rows),
      b.item(prompt.slice(9, 40), null, {}, others[0]),
      b.item(prompt.slice(5, 6), sees(0, 1, 'sum'), {}, others[1]),
      b.item(prompt.slice(20, 41), sees(0, 21, 'entropy'), {}, others[2]),
    ]
    const empty = () => {
      for (const rows of [b.rows, ...others]) b.store.truncate(rows, 0)
    }
    const together = async () => {
      empty()
      return (await b.executor.run({ items: items() })).items.map((r) => r.observed && copyOf(r.observed))
    }
    const first = await together()
    assert.deepEqual(
      first.map((o) => o?.length ?? null),
      [LAYERS, null, LAYERS, LAYERS],
    )
    assert.deepEqual(await together(), first)
    empty()
    for (const [i, work] of items().entries()) if (work.outputs.observe) same(await b.seen(work), first[i]!, ROUNDING)
  })

  it('see as much in two ranges as in one', async () => {
    using b = new Bench()
    const parts: ObservedLayer[][] = []
    for (const observe of [
      sees(0, 150, 'sum', 'entropy'),
      sees(0, 70, 'sum', 'entropy'),
      sees(70, 150, 'sum', 'entropy'),
    ]) {
      b.store.truncate(b.rows, 0)
      parts.push(await b.seen(b.item(prompt, observe)))
    }
    const [whole, first, second] = parts
    for (let l = 0; l < LAYERS; l++)
      for (const s of ['sum', 'entropy'] as const) {
        const a = first![l]!.statistics[s]!
        const added = a.map((x, i) => x + second![l]!.statistics[s]![i]!)
        assert.ok(worst(whole![l]!.statistics[s]!, added) < ROUNDING)
      }
  })

  it('hold no more than a block of rows at once', async () => {
    // With one block of memory more for each, eight blocks would take far more than two.
    const scratch = async (rows: number) => {
      using b = new Bench('auto', 'f16')
      const tokens = Int32Array.from({ length: 512 }, (_, i) => 3 + ((i * 31) % 500))
      const before = async () => {
        using plain = new Bench('auto', 'f16')
        await plain.run(plain.item(tokens, null))
        return plain.executor.scratchBytes
      }
      await b.run(b.item(tokens, sees(0, rows, 'sum', 'entropy')))
      return b.executor.scratchBytes - (await before())
    }
    const block = OBSERVED_ROWS * 512 * HEADS * 4
    assert.ok((await scratch(512)) - (await scratch(128)) < block, `${await scratch(512)} ${await scratch(128)}`)
  })

  const bad: Record<string, Observe> = {
    'rows that are not there': sees(0, 6, 'sum'),
    'no rows': sees(2, 2, 'sum'),
    'half rows': sees(0.5, 2, 'sum'),
    'no statistic': sees(0, 2),
    'a statistic twice': sees(0, 2, 'sum', 'sum'),
    'a statistic that is not there': sees(0, 2, 'median' as Statistic),
    'the variance of one row': sees(0, 1, 'variance'),
  }
  for (const [name, observe] of Object.entries(bad))
    it(`are refused: ${name}`, async () => {
      using b = new Bench()
      await assert.rejects(
        b.run(b.item(prompt.slice(0, 5), observe)),
        (e: KvasirError) => e.code === 'INVALID_ARGUMENT',
      )
    })

  it('are refused: the variance of more rows than go at once', async () => {
    using b = new Bench()
    await assert.rejects(b.run(b.item(prompt, sees(0, 65, 'variance'))), /observe 2 to 64 rows/)
  })
})

describe('reductions', () => {
  const n = 96
  const H = 3

  /** With ones, as on the CPU, and without, as on a GPU. */
  function reduced(w: number, p: Float32Array, way: 'ones' | 'columns', wanted: readonly Statistic[]) {
    using c = new Context({ tensors: 64, graphNodes: 128 })
    const graph = new Graph(c)
    const input = c.tensor('f32', n, w, H).asInput()
    const ones = way === 'ones' ? c.tensor('f32', 1, OBSERVED_ROWS, H).asInput() : null
    const out = Object.entries(reduce(c, input, wanted, ones))
    for (const [, t] of out) graph.expand(t.asOutput())
    runner.allocate(graph)
    input.set(p)
    ones?.set(new Float32Array(ones.elements).fill(1))
    runner.run(graph)
    return Object.fromEntries(out.map(([name, t]) => [name, t.floats()])) as Partial<Record<Statistic, Float32Array>>
  }

  for (const way of ['ones', 'columns'] as const) {
    it(`uniform attention has the entropy ln n and no variance (${way})`, () => {
      const { sum, entropy, variance } = reduced(16, new Float32Array(n * 16 * H).fill(1 / n), way, STATISTICS)
      for (const x of sum!) assert.ok(Math.abs(x - 16 / n) < 1e-6)
      for (let h = 0; h < H; h++) {
        const total = entropy!.subarray(h * n, (h + 1) * n).reduce((a, x) => a + x, 0)
        assert.ok(Math.abs(total - 16 * Math.log(n)) < 1e-3)
      }
      for (const x of variance!) assert.ok(x < 1e-16)
    })

    it(`the variance of small numbers near each other is not lost (${way})`, () => {
      // p around 1e-4, off by 1e-7: mean of squares minus square of mean would be off by a tenth or more.
      const w = 32
      const p = Float32Array.from({ length: n * w * H }, (_, i) => 1e-4 + 1e-7 * Math.sin(i * 12.9898))
      const { variance } = reduced(w, p, way, ['variance'])
      for (let h = 0; h < H; h++)
        for (let j = 0; j < n; j++) {
          const column = Array.from({ length: w }, (_, i) => p[(h * w + i) * n + j]!)
          const mean = column.reduce((a, x) => a + x, 0) / w
          const want = column.reduce((a, x) => a + (x - mean) ** 2, 0) / (w - 1)
          assert.ok(Math.abs(variance![h * n + j]! / want - 1) < 1e-3)
        }
    })

    it(`one row, and probabilities of 0 and 1 (${way})`, () => {
      const p = new Float32Array(n * H)
      for (let h = 0; h < H; h++) p[h * n + 7 * h] = 1
      const { sum, entropy } = reduced(1, p, way, ['sum', 'entropy'])
      assert.deepEqual(sum, p)
      for (const x of entropy!) assert.ok(Math.abs(x) < 1e-7)
    })
  }
})
