/** The executor on real models: what a work item says is what happens. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../bench/random-model.ts'
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import type { KvSequence } from '../cache/sequence.ts'
import { KvStore } from '../cache/store.ts'
import type { KvasirError } from '../contract/errors.ts'
import type { Position } from '../contract/units.ts'
import type { WorkItem } from '../contract/work-item.ts'
import { cpuDevice } from '../ggml/device.ts'
import { f32, u32 } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { toFloats } from '../ggml/numbers.ts'
import { liveNatives } from '../ggml/owned.ts'
import { rowBytes } from '../ggml/types.ts'
import { Model } from '../model/model.ts'
import type { LoweringName } from './lower/lowering.ts'
import { Executor } from './run.ts'
import { storeShape } from './store-shape.ts'

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
  readonly store: KvStore
  readonly executor: Executor
  /** The sequence that items are for unless told otherwise. */
  rows: KvSequence
}

function bench(lowering: LoweringName = 'auto', type: CacheType = 'f16', threads = 1): Bench {
  const options = { cells: 2 * CONTEXT, keyType: type, valueType: type, lowering }
  const store = new KvStore(storeShape(model.config, options, model.device), model.device)
  const executor = new Executor(model, store, { threads, lowering })
  return {
    store,
    executor,
    rows: store.create(CONTEXT),
    [Symbol.dispose]() {
      executor[Symbol.dispose]()
      store[Symbol.dispose]()
    },
  }
}

const prompt = Int32Array.from({ length: 150 }, (_, i) => 3 + ((i * 7919) % 500))

function item(b: Bench, tokens: Int32Array, change: Partial<WorkItem> = {}, rows = b.rows): WorkItem {
  const position = rows.columns[0]!.end
  const positions = Int32Array.from(tokens, (_, i) => position + i)
  b.store.append(rows, positions)
  return {
    sequence: rows.id,
    positions,
    store: { kind: 'tail' },
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
    b.store.truncate(b.rows, 0)
    assert.deepEqual(await logitsOf(b, item(b, prompt)), first)
    await run(b, item(b, prompt.slice(0, 3)))
    b.store.truncate(b.rows, 0)
    assert.deepEqual(await logitsOf(b, item(b, prompt)), first)
  })

  it('can stop at a layer and go on from its hidden rows, bit for bit', async () => {
    using b = bench()
    const whole = await logitsOf(b, item(b, prompt))
    b.store.truncate(b.rows, 0)
    const lower = item(b, prompt, { layers: { from: 0, to: 3 }, outputs: { logits: [], hidden: true } })
    const hidden = (await run(b, lower)).hidden!.slice()
    assert.equal(hidden.length, prompt.length * model.config.width)
    const upper = { ...lower, layers: { from: 3, to: 4 }, input: { kind: 'hidden', rows: hidden } as const }
    assert.deepEqual(await logitsOf(b, { ...upper, outputs: { logits: [prompt.length - 1], hidden: false } }), whole)
  })

  it('give hidden rows and logits of one pass together', async () => {
    using b = bench()
    const whole = await logitsOf(b, item(b, prompt))
    b.store.truncate(b.rows, 0)
    const both = await run(b, item(b, prompt, { outputs: { logits: [prompt.length - 1], hidden: true } }))
    assert.deepEqual(both.logits, whole)
    assert.equal(both.hidden!.length, prompt.length * model.config.width)
  })

  it('give states behind the final norm: of any rows, beside logits, and those that logits are made of', async () => {
    using b = bench()
    const D = model.config.width
    const logits = (rows: number[]) => ({ logits: rows, hidden: false })
    const all = (
      await run(b, item(b, prompt, { outputs: { ...logits([]), normed: [...prompt.keys()] } }))
    ).normed!.slice()
    assert.equal(all.length, prompt.length * D)
    b.store.truncate(b.rows, 0)
    const some = await run(b, item(b, prompt, { outputs: { ...logits([149]), normed: [0, 70, 149] } }))
    for (const [i, row] of [0, 70, 149].entries())
      assert.ok(difference(some.normed!.slice(i * D, (i + 1) * D), all.slice(row * D, (row + 1) * D)) < ROUNDING)
    b.store.truncate(b.rows, 0)
    assert.deepEqual(some.logits!.slice(), await logitsOf(b, item(b, prompt)))

    // The same arithmetic by hand: logits = cap * tanh(W x / cap), norms included in x.
    const W = model.output
    const { vocab, logitSoftcap: cap } = model.config
    const bytes = model.weights.global['tokenEmbeddings']!.get(new Uint8Array(rowBytes(W.type, D) * vocab))
    const matrix = toFloats(W.type, bytes, D * vocab)
    const state = all.subarray(149 * D)
    const want = Float32Array.from({ length: vocab }, (_, v) => {
      let sum = 0
      for (let i = 0; i < D; i++) sum += matrix[v * D + i]! * state[i]!
      return cap ? cap * Math.tanh(sum / cap) : sum
    })
    b.store.truncate(b.rows, 0)
    assert.ok(difference(await logitsOf(b, item(b, prompt)), want) < ROUNDING)
  })

  it('give states of one item and logits of others in one step', async () => {
    using b = bench()
    const D = model.config.width
    const other = b.store.create(CONTEXT)
    const third = b.store.create(CONTEXT)
    const states = { outputs: { logits: [], hidden: false, normed: [0, 1, 29] } }
    const items = (): WorkItem[] => [
      item(b, prompt.slice(0, 9)),
      item(b, prompt.slice(0, 30), states, other),
      item(b, prompt.slice(5, 17), {}, third),
    ]
    const together = (await b.executor.run({ items: items() })).items.map((r) => ({
      logits: r.logits?.slice() ?? null,
      normed: r.normed?.slice() ?? null,
    }))
    assert.deepEqual(
      together.map((r) => [r.logits?.length ?? 0, r.normed?.length ?? 0]),
      [[model.config.vocab, 0], [0, 3 * D], [model.config.vocab, 0]], // biome-ignore format: a table
    )
    for (const rows of [b.rows, other, third]) b.store.truncate(rows, 0)
    for (const [i, work] of items().entries()) {
      const { logits, normed } = await run(b, work)
      if (logits) assert.ok(difference(together[i]!.logits!, logits) < ROUNDING)
      else assert.ok(difference(together[i]!.normed!, normed!) < ROUNDING)
    }
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
    b.store.truncate(b.rows, 0)
    const got = await logitsOf(b, item(b, prompt, { input: { kind: 'embeddings', rows } }))
    assert.ok(difference(got, want) < 1e-6, `${difference(got, want)}`)
  })

  it('give the logits of any rows', async () => {
    using b = bench()
    const all = (
      await run(b, item(b, prompt, { outputs: { logits: [...prompt.keys()], hidden: false } }))
    ).logits!.slice()
    b.store.truncate(b.rows, 0)
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
      const cells = Int32Array.from(prompt.keys()).reverse()
      for (const [i, cell] of cells.entries()) b.rows.columns[0]!.setPosition(cell, i)
      const got = await logitsOf(b, { ...work, store: { kind: 'cells', cells } })
      assert.ok(difference(got, want) < ROUNDING, `${lowering}: ${difference(got, want)}`)
    }
  })

  it('see only what the mask lets them see', async () => {
    using b = bench()
    const first = await logitsOf(b, item(b, prompt.slice(0, 100), { outputs: { logits: [50], hidden: false } }))
    b.store.truncate(b.rows, 0)
    const changed = prompt.slice(0, 100).fill(9, 51)
    assert.deepEqual(await logitsOf(b, item(b, changed, { outputs: { logits: [50], hidden: false } })), first)
  })
})

/** Token lists of their own for several sequences. */
const prompts = [40, 1, 130, 70, 64].map((n, k) =>
  Int32Array.from({ length: n }, (_, i) => 3 + ((i * 31 + k * 97) % 500)),
)

/** Logits of the last row of each prompt, and of one decode step after it, each sequence by itself. */
async function alone(lowering: LoweringName, type: CacheType): Promise<Float32Array[][]> {
  const out: Float32Array[][] = []
  for (const p of prompts) {
    using b = bench(lowering, type)
    out.push([await logitsOf(b, item(b, p)), await logitsOf(b, item(b, Int32Array.of(7)))])
  }
  return out
}

describe('steps of several items', () => {
  // Products of one row and of many are computed by different kernels.
  for (const [lowering, type, bound] of [
    ['auto', 'f16', ROUNDING],
    ['flash', 'f16', ROUNDING],
    ['grouped', 'f32', ROUNDING],
    ['auto', 'q8_0', 3e-2],
  ] as const)
    it(`give each item what it gets by itself (${lowering}, ${type})`, async () => {
      const want = await alone(lowering, type)
      using b = bench(lowering, type)
      const sequences = prompts.map((p) => b.store.create(p.length))
      const prefill = prompts.map((p, i) => item(b, p, {}, sequences[i]))
      const first = (await b.executor.run({ items: prefill })).items
      for (const [i, r] of first.entries())
        assert.ok(difference(r.logits!, want[i]![0]!) < bound, `prompt ${i}: ${difference(r.logits!, want[i]![0]!)}`)
      // In another order than before: results belong to items, not to places.
      const order = [3, 0, 4, 1, 2]
      const decode = order.map((i) => item(b, Int32Array.of(7), {}, sequences[i]))
      const second = (await b.executor.run({ items: decode })).items
      for (const [k, i] of order.entries()) {
        const d = difference(second[k]!.logits!, want[i]![1]!)
        assert.ok(d < bound, `decode ${i}: ${d}`)
      }
    })

  it('mix prompt chunks, decodes and items without outputs', async () => {
    const want = await alone('auto', 'f16')
    using b = bench()
    const sequences = prompts.map((p) => b.store.create(p.length))
    const rest = prompts[2]!.slice(100)
    const before = [
      item(b, prompts[0]!, {}, sequences[0]),
      item(b, prompts[2]!.slice(0, 100), { outputs: { logits: [], hidden: false } }, sequences[2]),
    ]
    const none = (await b.executor.run({ items: before })).items[1]!
    assert.equal(none.logits, null)
    const mixed = [
      item(b, rest, {}, sequences[2]),
      item(b, prompts[3]!, { outputs: { logits: [], hidden: false } }, sequences[3]),
      item(b, Int32Array.of(7), {}, sequences[0]),
    ]
    const got = (await b.executor.run({ items: mixed })).items
    assert.ok(difference(got[0]!.logits!, want[2]![0]!) < ROUNDING)
    assert.ok(difference(got[2]!.logits!, want[0]![1]!) < ROUNDING)
  })

  it('let rows join and leave at layer boundaries', async () => {
    const want = await alone('auto', 'f16')
    using b = bench()
    const sequences = prompts.map((p) => b.store.create(p.length))
    const lower = { layers: { from: 0, to: 2 }, outputs: { logits: [], hidden: true } }
    const started = item(b, prompts[0]!, lower, sequences[0])
    const hidden = (await b.executor.run({ items: [started] })).items[0]!.hidden!
    // One goes on from layer 2, one runs all layers, one stops behind layer 1.
    const got = await b.executor.run({
      items: [
        item(b, prompts[2]!, {}, sequences[2]),
        {
          ...started,
          layers: { from: 2, to: 4 },
          input: { kind: 'hidden', rows: hidden },
          outputs: { logits: [39], hidden: false },
        },
        item(b, prompts[3]!, lower, sequences[3]),
      ],
    })
    assert.ok(difference(got.items[0]!.logits!, want[2]![0]!) < ROUNDING)
    assert.ok(difference(got.items[1]!.logits!, want[0]![0]!) < ROUNDING)
    const rest = { layers: { from: 2, to: 4 }, input: { kind: 'hidden', rows: got.items[2]!.hidden! } as const }
    const third = {
      sequence: sequences[3]!.id,
      positions: Int32Array.from(prompts[3]!.keys()),
      store: { kind: 'tail' } as const,
    }
    const end = await run(b, { ...third, ...rest, outputs: { logits: [69], hidden: false }, mask: { kind: 'causal' } })
    assert.ok(difference(end.logits!, want[3]![0]!) < ROUNDING)
  })
})

describe('steps that are filled up to whole tiles', () => {
  // q4_0 weights are repacked where the CPU has kernels for it, q8_0 ones are not everywhere: both rules are met.
  for (const type of ['q4_0', 'q8_0'] as const)
    it(`give each item what it gets by itself: ${type} weights`, async () => {
      const file = join(folder, `${type}.gguf`)
      const shape = { layers: 2, width: 256, heads: 4, kvHeads: 2, headDim: 64, ffWidth: 512, vocab: 512, tied: true }
      await writeRandomModel(file, { name: 'fill', architecture: 'llama', ...shape, type })
      using small = await Model.load(file, () => ({ device: cpuDevice(), contextLength: CONTEXT }))
      const load = (lowering: LoweringName) => {
        const options = { cells: 2 * CONTEXT, keyType: 'f32', valueType: 'f32', lowering } as const
        const store = new KvStore(storeShape(small.config, options, small.device), small.device)
        return { store, executor: new Executor(small, store, { threads: 1, lowering }) }
      }
      const { store, executor } = load('auto')
      const plain = load('flash')
      for (const n of [1, 2, 3, 5, 6, 7, 9]) {
        const tokens = Array.from({ length: n }, (_, i) => Int32Array.of(5 + 11 * i, 7 + 3 * i, 9))
        const step = (s: KvStore, wanted: number[]) => ({
          items: tokens.map((t) => {
            const sequence = s.create(8)
            s.append(sequence, [0, 1, 2])
            return {
              ...{ sequence: sequence.id, positions: [0, 1, 2] as Position[], store: { kind: 'tail' } as const },
              ...{ layers: { from: 0, to: 2 }, input: { kind: 'tokens', tokens: t } as const },
              ...{ outputs: { logits: wanted, hidden: false }, mask: { kind: 'causal' } as const },
            }
          }),
        })
        for (const wanted of [[2], [0, 1, 2]]) {
          const got = (await executor.run(step(store, wanted))).items.map((r) => r.logits!.slice())
          const want = (await plain.executor.run(step(plain.store, wanted))).items.map((r) => r.logits!.slice())
          for (const [i, g] of got.entries())
            assert.ok(
              difference(g, want[i]!) < 2e-2,
              `${n} items, ${wanted.length} logits, item ${i}: ${difference(g, want[i]!)}`,
            )
          for (const s of [store, plain.store]) for (const q of [...s.sequences.values()]) s.free(q)
        }
      }
      for (const { store: s, executor: e } of [{ store, executor }, plain]) {
        e[Symbol.dispose]()
        s[Symbol.dispose]()
      }
    })
})

describe('tables in pieces', () => {
  /** A sequence whose pages lie apart: another one takes every other page. */
  function* scattered(b: Bench, other: KvSequence, tokens: Int32Array, pages: number): Generator<WorkItem> {
    for (let at = 0; at < tokens.length; at += 32 * pages) {
      yield item(b, tokens.slice(at, at + 32 * pages))
      b.store.append(
        other,
        Int32Array.from({ length: 32 }, (_, i) => i),
      )
    }
  }
  for (const [lowering, type, bound] of [
    ['auto', 'f16', ROUNDING],
    ['flash', 'f16', ROUNDING],
    ['grouped', 'f32', ROUNDING],
    ['auto', 'q8_0', 3e-2],
  ] as const)
    for (const pages of [1, 2])
      it(`${lowering}, ${type}: runs of ${pages} pages are read as one`, async () => {
        const want = await reference()
        using b = bench(lowering, type)
        b.rows = b.store.create(0)
        const other = b.store.create(0)
        // The rows are computed by several steps, each of which reads all pieces before it.
        let got = new Float32Array(0)
        for (const work of scattered(b, other, prompt.slice(0, 128), pages)) got = await logitsOf(b, work)
        got = await logitsOf(b, item(b, prompt.slice(128)))
        assert.equal(b.rows.columns[0]!.runs.length, Math.ceil(5 / pages))
        assert.ok(difference(got, want) < bound, `${difference(got, want)}`)
        // And once more as a whole, with at least a tile of rows.
        b.store.truncate(b.rows, 0)
        got = await logitsOf(b, item(b, prompt))
        assert.ok(difference(got, want) < bound, `whole: ${difference(got, want)}`)
      })

  for (const [lowering, type, bound] of [
    ['auto', 'f16', ROUNDING],
    ['flash', 'f16', ROUNDING],
    ['auto', 'q8_0', 3e-2],
  ] as const)
    it(`${lowering}, ${type}: a ragged table with all rows gives the same, prompt and decode`, async () => {
      const want = await reference()
      using b = bench(lowering, type)
      await run(b, item(b, prompt.slice(0, 100)))
      b.store.makeRagged(b.rows)
      let got = await logitsOf(b, item(b, prompt.slice(100, 149)))
      got = await logitsOf(b, item(b, prompt.slice(149)))
      assert.ok(difference(got, want) < bound, `${difference(got, want)}`)
      b.store.takeBack(b.rows, 50)
      got = await logitsOf(b, item(b, prompt.slice(100)))
      assert.ok(difference(got, want) < bound, `short chunk: ${difference(got, want)}`)
      b.store.takeBack(b.rows, 150)
      got = await logitsOf(b, item(b, prompt))
      assert.ok(difference(got, want) < bound, `whole: ${difference(got, want)}`)
    })

  it('rows that are dropped in one head are not seen there, and only there', async () => {
    using b = bench()
    await run(b, item(b, prompt.slice(0, 149)))
    const fork = b.store.fork(b.rows, 0)
    b.store.makeRagged(b.rows)
    const full = await logitsOf(b, item(b, prompt.slice(149)))
    assert.ok(difference(full, await logitsOf(b, item(b, prompt.slice(149), {}, fork))) < ROUNDING)
    b.store.takeBack(b.rows, 1)
    // Layer 1, head 1 loses most rows; before and after closing the holes the answer must be the same, and another one.
    b.store.drop(
      b.rows,
      3,
      Array.from({ length: 120 }, (_, i) => i + 5),
    )
    const holes = await logitsOf(b, item(b, prompt.slice(149)))
    b.store.takeBack(b.rows, 1)
    const before = b.store.usedBytes
    b.store.compact(b.rows, 3)
    assert.ok(b.store.usedBytes <= before)
    const compacted = await logitsOf(b, item(b, prompt.slice(149)))
    assert.ok(difference(compacted, holes) < 1e-4, `${difference(compacted, holes)}`)
    assert.ok(difference(holes, full) > 1e-3, `dropping changed nothing: ${difference(holes, full)}`)
  })

  it('forks go on by themselves from shared pages', async () => {
    using b = bench()
    await run(b, item(b, prompt.slice(0, 100)))
    const used = b.store.usedBytes
    const fork = b.store.fork(b.rows, 10)
    assert.equal(b.store.usedBytes, used)
    const mine = await logitsOf(b, item(b, Int32Array.of(9)))
    const theirs = await logitsOf(b, item(b, Int32Array.of(11), {}, fork))
    using alone = bench()
    await run(alone, item(alone, prompt.slice(0, 100)))
    assert.ok(difference(await logitsOf(alone, item(alone, Int32Array.of(9))), mine) < ROUNDING)
    alone.store.takeBack(alone.rows, 1)
    assert.ok(difference(await logitsOf(alone, item(alone, Int32Array.of(11))), theirs) < ROUNDING)
  })
})

describe('cache types', () => {
  // Rounding of one stored number: f16 2^-11, bf16 2^-8, q8_0 1/254 of the largest of 32. Even f32 differs with the order of
  // summation, since a last bit can tip what products with f16 weights round: 3e-4 where it was measured.
  const bound: Record<CacheType, number> = {
    ...{ f32: 1e-3, f16: ROUNDING, bf16: 2e-2, q8_0: 3e-2, q5_1: 0.1, q5_0: 0.1, q4_1: 0.3, q4_0: 0.3, iq4_nl: 0.3 },
  }
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
    'a cell that is not in use': (b) => item(b, Int32Array.of(5), { store: { kind: 'cells', cells: [7] } }),
    'fewer cells than rows': (b) => item(b, Int32Array.of(5, 6), { store: { kind: 'cells', cells: [0] } }),
    'no rows': (b) => item(b, new Int32Array(0)),
    'layers that are not there': (b) => item(b, Int32Array.of(5), { layers: { from: 0, to: 5 } }),
    'logits of a row that is not there': (b) => item(b, Int32Array.of(5), { outputs: { logits: [1], hidden: false } }),
    'logits of rows that do not ascend': (b) =>
      item(b, Int32Array.of(5, 6), { outputs: { logits: [1, 0], hidden: false } }),
    'states of a row that is not there': (b) =>
      item(b, Int32Array.of(5), { outputs: { logits: [], hidden: false, normed: [1] } }),
    'states without the last layer': (b) =>
      item(b, Int32Array.of(5), {
        layers: { from: 0, to: 2 },
        outputs: { logits: [], hidden: false, normed: [0] },
      }),
    'two rows for one cell': (b) => item(b, Int32Array.of(5, 6), { store: { kind: 'cells', cells: [0, 0] } }),
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
      b.store.truncate(b.rows, 0)
      assert.ok((await logitsOf(b, item(b, Int32Array.of(5)))).every(Number.isFinite))
    })
})
