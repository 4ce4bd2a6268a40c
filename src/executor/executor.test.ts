/** The executor on real models: what a work item says is what happens. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../bench/random-model.ts'
import { CACHE_TYPES, type CacheType, UniformCache } from '../cache/uniform.ts'
import type { KvasirError } from '../contract/errors.ts'
import type { CellId, Position, SequenceId } from '../contract/units.ts'
import type { WorkItem } from '../contract/work-item.ts'
import { cpuDevice } from '../ggml/device.ts'
import { f32, u32 } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { toFloats } from '../ggml/numbers.ts'
import { liveNatives } from '../ggml/owned.ts'
import { rowBytes } from '../ggml/types.ts'
import { Model } from '../model/model.ts'
import { wantsTransposed } from './lower/choose.ts'
import type { LoweringName } from './lower/lowering.ts'
import { Executor } from './run.ts'

const CONTEXT = 512
const folder = mkdtempSync(join(tmpdir(), 'kvasir-executor-'))
const path = join(folder, 'gemma2.gguf')
let model: Model
let natives: Record<string, number>

// Soft caps, windows, GQA: the architecture that uses most of what there is.
before(async () => {
  await loadNative()
  natives = liveNatives()
  await writeRandomModel(path, {
    name: 'test',
    architecture: 'gemma2',
    layers: 4,
    width: 128,
    heads: 4,
    kvHeads: 2,
    headDim: 32,
    ffWidth: 256,
    vocab: 512,
    type: 'f16',
    tied: true,
    keys: { 'attention.sliding_window': u32(64), attn_logit_softcapping: f32(50), final_logit_softcapping: f32(30) },
  })
  model = await Model.load(path, () => ({ device: cpuDevice(), contextLength: CONTEXT }))
})
after(() => {
  model[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

interface Bench extends Disposable {
  readonly cache: UniformCache
  readonly executor: Executor
}

function bench(lowering: LoweringName = 'auto', type: CacheType = 'f16', threads = 1): Bench {
  const { layers, headDim, kvHeads } = model.config
  const valuesTransposed = wantsTransposed(lowering, type, model.device)
  const shape = { layers, headDim, kvHeads, cells: CONTEXT, keyType: type, valueType: type, valuesTransposed }
  const cache = new UniformCache(shape, model.device)
  const executor = new Executor(model, cache, { threads, lowering })
  return {
    cache,
    executor,
    [Symbol.dispose]() {
      executor[Symbol.dispose]()
      cache[Symbol.dispose]()
    },
  }
}

const prompt = Int32Array.from({ length: 150 }, (_, i) => 3 + ((i * 7919) % 500))

function item(b: Bench, tokens: Int32Array, change: Partial<WorkItem> = {}): WorkItem {
  const position = b.cache.used
  return {
    sequence: 0 as SequenceId,
    positions: Int32Array.from(tokens, (_, i) => position + i),
    cells: b.cache.append(position, tokens.length),
    layers: { from: 0, to: model.config.layers },
    input: { kind: 'tokens', tokens },
    outputs: { logits: [tokens.length - 1], hidden: false },
    mask: { kind: 'causal' },
    ...change,
  }
}

const run = async (b: Bench, work: WorkItem) => (await b.executor.run({ items: [work] })).items[0]!
const logitsOf = async (b: Bench, work: WorkItem) => (await run(b, work)).logits!.slice()

/** Root mean square of the difference, relative to that of `b`. */
function difference(a: Float32Array, b: Float32Array): number {
  let d = 0
  let n = 0
  for (let i = 0; i < a.length; i++) {
    d += (a[i]! - b[i]!) ** 2
    n += b[i]! ** 2
  }
  return Math.sqrt(d / n)
}

/** f16 keys and values, and products of f16 weights with f32 rows: 5e-4 at worst where results were measured. */
const ROUNDING = 2e-3

async function reference(): Promise<Float32Array> {
  using b = bench('flash', 'f32')
  return await logitsOf(b, item(b, prompt))
}

describe('work items', () => {
  it('give the same logits in one chunk and in many, prompt rows and decode steps alike', async () => {
    const want = await reference()
    for (const lowering of ['auto', 'grouped', 'flash'] as const)
      for (const chunk of [1, 7, 64, 100]) {
        using b = bench(lowering)
        let got = new Float32Array(0)
        for (let at = 0; at < prompt.length; at += chunk) got = await logitsOf(b, item(b, prompt.slice(at, at + chunk)))
        assert.ok(difference(got, want) < ROUNDING, `${lowering} in chunks of ${chunk}: ${difference(got, want)}`)
      }
  })

  it('give the same bits when a graph is run again and when it is built anew', async () => {
    using b = bench()
    const first = await logitsOf(b, item(b, prompt))
    b.cache.truncate(0)
    assert.deepEqual(await logitsOf(b, item(b, prompt)), first)
    await run(b, item(b, prompt.slice(0, 3)))
    b.cache.truncate(0)
    assert.deepEqual(await logitsOf(b, item(b, prompt)), first)
  })

  it('can stop at a layer and go on from its hidden rows, bit for bit', async () => {
    using b = bench()
    const whole = await logitsOf(b, item(b, prompt))
    b.cache.truncate(0)
    const lower = item(b, prompt, { layers: { from: 0, to: 3 }, outputs: { logits: [], hidden: true } })
    const hidden = (await run(b, lower)).hidden!.slice()
    assert.equal(hidden.length, prompt.length * model.config.width)
    const upper = { ...lower, layers: { from: 3, to: 4 }, input: { kind: 'hidden', rows: hidden } as const }
    assert.deepEqual(await logitsOf(b, { ...upper, outputs: { logits: [prompt.length - 1], hidden: false } }), whole)
  })

  it('give hidden rows and logits of one pass together', async () => {
    using b = bench()
    const whole = await logitsOf(b, item(b, prompt))
    b.cache.truncate(0)
    const both = await run(b, item(b, prompt, { outputs: { logits: [prompt.length - 1], hidden: true } }))
    assert.deepEqual(both.logits, whole)
    assert.equal(both.hidden!.length, prompt.length * model.config.width)
  })

  it('take embeddings in place of tokens', async () => {
    using b = bench()
    const want = await logitsOf(b, item(b, prompt))
    const { width } = model.config
    const table = model.weights.global['tokenEmbeddings']!
    const rows = new Float32Array(prompt.length * width)
    for (const [i, token] of prompt.entries()) {
      const bytes = table.get(new Uint8Array(rowBytes(table.type, width)), token * table.nb[1])
      // Gemma scales its embeddings by sqrt(width); rows that enter as embeddings are taken as they are.
      rows.set(
        toFloats(table.type, bytes, width).map((x) => Math.fround(x * Math.fround(Math.sqrt(width)))),
        i * width,
      )
    }
    b.cache.truncate(0)
    const got = await logitsOf(b, item(b, prompt, { input: { kind: 'embeddings', rows } }))
    assert.ok(difference(got, want) < 1e-6, `${difference(got, want)}`)
  })

  it('give the logits of any rows', async () => {
    using b = bench()
    const all = (
      await run(b, item(b, prompt, { outputs: { logits: [...prompt.keys()], hidden: false } }))
    ).logits!.slice()
    b.cache.truncate(0)
    const some = (await run(b, item(b, prompt, { outputs: { logits: [0, 70, 149], hidden: false } }))).logits!
    const V = model.config.vocab
    for (const [i, row] of [0, 70, 149].entries())
      assert.ok(difference(some.slice(i * V, (i + 1) * V), all.slice(row * V, (row + 1) * V)) < 1e-5, `row ${row}`)
  })

  it('store rows in the cells that they name, in any order', async () => {
    const want = await reference()
    for (const lowering of ['auto', 'flash'] as const) {
      using b = bench(lowering)
      const work = item(b, prompt)
      const cells = Int32Array.from(work.cells).reverse()
      for (const [i, cell] of cells.entries()) b.cache.positions[cell] = i
      const got = await logitsOf(b, { ...work, cells: [...cells] as CellId[] })
      assert.ok(difference(got, want) < ROUNDING, `${lowering}: ${difference(got, want)}`)
    }
  })

  it('see only what the mask lets them see', async () => {
    using b = bench()
    const first = await logitsOf(b, item(b, prompt.slice(0, 100), { outputs: { logits: [50], hidden: false } }))
    b.cache.truncate(0)
    const changed = prompt.slice(0, 100).fill(9, 51)
    assert.deepEqual(await logitsOf(b, item(b, changed, { outputs: { logits: [50], hidden: false } })), first)
  })
})

describe('cache types', () => {
  // Rounding of one stored number: f16 2^-11, bf16 2^-8, q8_0 1/254 of the largest of 32. Even f32 differs with the order of
  // summation, since a last bit can tip what products with f16 weights round: 3e-4 where it was measured.
  const bound: Record<CacheType, number> = { f32: 1e-3, f16: ROUNDING, bf16: 2e-2, q8_0: 3e-2 }
  for (const type of CACHE_TYPES)
    it(`${type}: prompt and decode steps stay near f32`, async () => {
      const want = await reference()
      for (const lowering of ['auto', 'flash'] as const) {
        using b = bench(lowering, type)
        await run(b, item(b, prompt.slice(0, 149)))
        const got = await logitsOf(b, item(b, prompt.slice(149)))
        assert.ok(difference(got, want) < bound[type], `${lowering}: ${difference(got, want)}`)
      }
    })
})

describe('bad work items are refused before native code sees them', () => {
  const cases: Record<string, (b: Bench) => WorkItem> = {
    'a token outside the vocabulary': (b) => item(b, Int32Array.of(512)),
    'a negative token': (b) => item(b, Int32Array.of(-1)),
    'a cell that is not in use': (b) => item(b, Int32Array.of(5), { cells: [7 as CellId] }),
    'fewer cells than rows': (b) => item(b, Int32Array.of(5, 6), { cells: [0 as CellId] }),
    'no rows': (b) => item(b, new Int32Array(0)),
    'layers that are not there': (b) => item(b, Int32Array.of(5), { layers: { from: 0, to: 5 } }),
    'logits of a row that is not there': (b) => item(b, Int32Array.of(5), { outputs: { logits: [1], hidden: false } }),
    'logits of rows that do not ascend': (b) =>
      item(b, Int32Array.of(5, 6), { outputs: { logits: [1, 0], hidden: false } }),
    'two rows for one cell': (b) => item(b, Int32Array.of(5, 6), { cells: [0 as CellId, 0 as CellId] }),
    'a position that is no whole number': (b) => item(b, Int32Array.of(5), { positions: [0.5 as Position] }),
    'logits without the last layer': (b) => item(b, Int32Array.of(5), { layers: { from: 0, to: 2 } }),
    'tokens as input of a middle layer': (b) => item(b, Int32Array.of(5), { layers: { from: 1, to: 4 } }),
    'hidden rows of a wrong size': (b) =>
      item(b, Int32Array.of(5), { layers: { from: 1, to: 4 }, input: { kind: 'hidden', rows: new Float32Array(3) } }),
  }
  for (const [name, make] of Object.entries(cases))
    it(name, async () => {
      using b = bench()
      await assert.rejects(
        async () => run(b, make(b)),
        (e: KvasirError) => e.code === 'INVALID_ARGUMENT',
      )
      // The executor is as good as before.
      b.cache.truncate(0)
      assert.ok((await logitsOf(b, item(b, Int32Array.of(5)))).every(Number.isFinite))
    })
})

describe('the uniform cache', () => {
  it('refuses more rows than it has cells, and frees what is truncated', () => {
    using b = bench()
    b.cache.append(0, CONTEXT)
    assert.throws(
      () => b.cache.append(CONTEXT, 1),
      (e: KvasirError) => e.code === 'CONTEXT_OVERFLOW',
    )
    b.cache.truncate(10)
    assert.equal(b.cache.used, 10)
    assert.deepEqual([...b.cache.positions.subarray(8, 12)], [8, 9, -1, -1])
    assert.equal(b.cache.append(10, 5)[0], 10)
  })

  it('takes the bytes that its shape says', () => {
    using b = bench()
    // 4 layers x 512 cells x 2 heads x 32 numbers x 2 bytes, keys and values.
    assert.equal(b.cache.bytes, 4 * 512 * 2 * 32 * 2 * 2)
  })
})
