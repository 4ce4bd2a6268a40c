/** What policies leave of a cache, read by attention: rows in slots, rows that stand for several. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../bench/random-model.ts'
import type { CacheType } from '../cache/arena.ts'
import { carryOut } from '../cache/carry-out.ts'
import { readRows, writeRows } from '../cache/rows.ts'
import type { KvSequence } from '../cache/sequence.ts'
import { KvStore } from '../cache/store.ts'
import type { Merge } from '../contract/policy.ts'
import { cpuDevice } from '../ggml/device.ts'
import { f32, str, u32 } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { ropeOf } from '../model/config.ts'
import { Model } from '../model/model.ts'
import type { LoweringName } from './lower/lowering.ts'
import { Executor } from './run.ts'
import { storeShape } from './store-shape.ts'

const N = 150
const folder = mkdtempSync(join(tmpdir(), 'kvasir-kept-'))
let natives: Record<string, number>
const models: Model[] = []

// Soft caps and windows (with another rotation than the other layers); none of it; YaRN, which scales what it rotates.
before(async () => {
  await loadNative()
  natives = liveNatives()
  const shape = {
    layers: 2,
    width: 128,
    heads: 4,
    kvHeads: 2,
    headDim: 64,
    ffWidth: 256,
    vocab: 512,
    type: 'f16',
  } as const
  await writeRandomModel(join(folder, 'gemma2.gguf'), {
    ...{ ...shape, name: 'capped', architecture: 'gemma2', tied: true },
    keys: { 'attention.sliding_window': u32(64), attn_logit_softcapping: f32(50), final_logit_softcapping: f32(30) },
  })
  await writeRandomModel(join(folder, 'llama.gguf'), { ...shape, name: 'plain', architecture: 'llama', tied: false })
  await writeRandomModel(join(folder, 'yarn.gguf'), {
    ...{ ...shape, name: 'yarn', architecture: 'llama', tied: false },
    keys: {
      'rope.scaling.type': str('yarn'),
      'rope.scaling.factor': f32(4),
      'rope.scaling.original_context_length': u32(128),
    },
  })
  for (const name of ['gemma2', 'llama', 'yarn'])
    models.push(await Model.load(join(folder, `${name}.gguf`), () => ({ device: cpuDevice(), contextLength: 512 })))
})
after(() => {
  for (const model of models) model[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

interface Bench {
  readonly model: Model
  readonly store: KvStore
  readonly executor: Executor
}

async function withBench(
  index: number,
  lowering: LoweringName,
  use: (b: Bench) => Promise<void>,
  type: CacheType = 'f16',
): Promise<void> {
  const model = models[index]!
  const options = { cells: 2048, keyType: type, valueType: type, lowering }
  const store = new KvStore(storeShape(model.config, options, model.device), model.device)
  const executor = new Executor(model, store, { threads: 1, lowering })
  try {
    await use({ model, store, executor })
  } finally {
    executor[Symbol.dispose]()
    store[Symbol.dispose]()
  }
}

const token = (i: number) => 3 + ((i * 7919) % 500)

/** Logits behind tokens that stand at `from`, `from + 1`, ...: those of a text from `first` on. */
async function run(
  { model, store, executor }: Bench,
  s: KvSequence,
  from: number,
  count: number,
  first = from,
): Promise<Float32Array> {
  const positions = Int32Array.from({ length: count }, (_, i) => from + i)
  store.append(s, positions)
  const { items } = await executor.run({
    items: [
      {
        ...{ sequence: s.id, positions, store: { kind: 'tail' }, layers: { from: 0, to: model.config.layers } },
        ...{ input: { kind: 'tokens', tokens: positions.map((_, i) => token(first + i)) }, mask: { kind: 'causal' } },
        outputs: { logits: [count - 1], hidden: false },
      },
    ],
  })
  return items[0]!.logits!.slice()
}

function difference(a: Float32Array, b: Float32Array): number {
  const square = (f: (i: number) => number) => a.reduce((sum, _, i) => sum + f(i) ** 2, 0)
  return Math.sqrt(square((i) => a[i]! - b[i]!) / square((i) => b[i]!))
}

const everywhere = ({ layers, kvHeads }: KvStore['dims'], rows: (layer: number, head: number) => Int32Array) =>
  Array.from({ length: layers }, (_, l) => Array.from({ length: kvHeads }, (_, h) => rows(l, h)))

/** One key [d], rotated by `by` positions, in float64. */
function turned(
  key: Float32Array,
  by: number,
  { base, dims, pairs, frequencyScale }: ReturnType<typeof ropeOf>,
): Float32Array {
  const out = Float32Array.from(key)
  for (let i = 0; i < dims / 2; i++) {
    const [a, b] = pairs === 'neox' ? [i, i + dims / 2] : [2 * i, 2 * i + 1]
    const angle = by * frequencyScale * base ** ((-2 * i) / dims)
    out[a] = key[a]! * Math.cos(angle) - key[b]! * Math.sin(angle)
    out[b] = key[a]! * Math.sin(angle) + key[b]! * Math.cos(angle)
  }
  return out
}

const carryOutTools = (executor: Executor) => ({
  runner: () => executor.rowRunner,
  formats: [],
  seed: 0,
  makeRoom: () => {},
})

describe('rows in slots', () => {
  for (const [index, lowering] of [
    [0, 'auto'],
    [0, 'flash'],
    [1, 'auto'],
    [1, 'grouped'],
  ] as const)
    for (const ragged of [false, true])
      it(`model ${index}, ${lowering}, ${ragged ? 'other rows in each head' : 'the same rows'}: as if keys had been turned`, () =>
        withBench(index, lowering, async (b) => {
          const { model, store, executor } = b
          const { headDim: d, layers, kvHeads } = model.config
          const slots = store.create(512)
          await run(b, slots, 0, N)
          const rows = (layer: number, head: number) => {
            const skip = ragged ? 2 + layer + head : 3
            return Int32Array.from(Array(N).keys()).filter((i) => i < 4 || i > 100 || i % skip === 0)
          }
          carryOut(store, slots, { kind: 'keep', rows: everywhere(store.dims, rows), placement: 'slots' })
          const byHand = store.fork(slots, 512)
          byHand.inSlots = false
          if (!ragged) store.makeRagged(byHand)
          for (let layer = 0; layer < layers; layer++)
            for (let head = 0; head < kvHeads; head++) {
              const column = byHand.column(layer, head, kvHeads)
              const cells = column.usedCells().sort((x, y) => column.positions[x]! - column.positions[y]!)
              const { keys, values } = readRows(executor.rowRunner, store, byHand, layer, head, cells)
              const places = cells.map((_, i) => N - cells.length + i)
              for (const [i, cell] of cells.entries()) {
                const by = places[i]! - column.positions[cell]!
                keys.set(turned(keys.subarray(i * d, (i + 1) * d), by, ropeOf(model.config, layer)), i * d)
              }
              writeRows(executor.rowRunner, store, byHand, layer, head, cells, { keys, values })
              for (const [i, cell] of cells.entries()) column.setPosition(cell, places[i]!)
            }
          for (const count of [1, 5, 80]) {
            const got = await run(b, slots, N, count)
            const expected = await run(b, byHand, N, count)
            // Keys that were turned by hand were rounded to f16 once more.
            assert.ok(difference(got, expected) < 3e-3, `${count} rows: ${difference(got, expected)}`)
            store.takeBack(slots, count)
            store.takeBack(byHand, count)
            const plain = store.fork(slots, 512)
            plain.inSlots = false
            assert.ok(
              difference(got, await run(b, plain, N, count)) > 1e-2,
              'with gaps between the rows it is the same',
            )
            store.free(plain)
          }
        }))

  // The same keys at other positions are rounded otherwise.
  for (const [index, name, type, most] of [
    [1, 'llama', 'f16', 2e-3],
    [2, 'yarn', 'f16', 2e-3],
    [1, 'llama', 'q8_0', 3e-2],
  ] as const)
    it(`${name}, ${type}: a text with a gap in its positions is read as if there were none`, () =>
      withBench(
        index,
        'auto',
        async (b) => {
          const [whole, gap, far] = [b.store.create(512), b.store.create(512), b.store.create(512)]
          gap.inSlots = true
          for (const s of [whole, gap, far]) await run(b, s, 0, 50)
          for (const count of [1, 70]) {
            const expected = await run(b, whole, 50, count)
            const off = difference(await run(b, gap, 90, count, 50), expected)
            assert.ok(off < most, `${count} rows: ${off}`)
            const farOff = difference(await run(b, far, 90, count, 50), expected)
            assert.ok(farOff > 10 * off, `positions mean nothing: ${farOff}, ${off}`)
            for (const s of [whole, gap, far]) b.store.takeBack(s, count)
          }
        },
        type,
      ))

  it('changes no bit where nothing is missing', () =>
    withBench(1, 'auto', async (b) => {
      const [a, c] = [b.store.create(512), b.store.create(512)]
      a.inSlots = true
      assert.deepEqual(await run(b, a, 0, N), await run(b, c, 0, N))
      assert.deepEqual(await run(b, a, N, 1), await run(b, c, N, 1))
    }))
})

describe('rows that stand for several', () => {
  for (const index of [0, 1])
    it(`model ${index}: attention is what it was when equal rows become one of their mass`, () =>
      withBench(index, 'auto', async (b) => {
        const { store, executor, model } = b
        const { headDim: d, layers, kvHeads } = model.config
        const all = store.create(512)
        await run(b, all, 0, N)
        const same = Array.from({ length: 40 }, (_, i) => 100 + i)
        store.makeRagged(all)
        for (let layer = 0; layer < layers; layer++)
          for (let head = 0; head < kvHeads; head++) {
            const one = readRows(executor.rowRunner, store, all, layer, head, [100])
            const copies = (x: Float32Array) => Float32Array.from({ length: d * same.length }, (_, i) => x[i % d]!)
            const rows = { keys: copies(one.keys), values: copies(one.values) }
            writeRows(executor.rowRunner, store, all, layer, head, same, rows)
          }
        const kept = Int32Array.from(Array(N).keys()).filter((i) => i <= 100 || i >= 140)
        const merge = (mass: number): Merge[] => [
          { into: 100, from: Int32Array.from(same), weights: new Float32Array(40).fill(1 / 40), mass },
        ]
        const merged = (mass: number) => {
          const s = store.fork(all, 512)
          const merges = everywhere(store.dims, () => kept).map((heads) => heads.map(() => merge(mass)))
          carryOut(
            store,
            s,
            { kind: 'keep', rows: everywhere(store.dims, () => kept), merges },
            carryOutTools(executor),
          )
          return s
        }
        const [weighted, plain] = [merged(40), merged(1)]
        // All rows of the merge must be in gemma2's window of 64, or none.
        for (const count of index === 0 ? [1, 10] : [1, 70]) {
          const expected = await run(b, all, N, count)
          const off = difference(await run(b, weighted, N, count), expected)
          assert.ok(off < 2e-3, `${count} rows: ${off}`)
          assert.ok(difference(await run(b, plain, N, count), expected) > 5 * off)
          for (const s of [all, weighted, plain]) store.takeBack(s, count)
        }
        const fork = store.fork(weighted, 512)
        assert.deepEqual(await run(b, fork, N, 1), await run(b, weighted, N, 1), 'a fork keeps the masses')
      }))

  it('plans that merge wrongly are refused, and nothing has changed', () =>
    withBench(1, 'auto', async (b) => {
      const { store, executor } = b
      const s = store.create(64)
      await run(b, s, 0, 40)
      const kept = Int32Array.from([0, 5, 39])
      const rows = everywhere(store.dims, () => kept)
      const good: Merge = { into: 5, from: Int32Array.of(5, 6), weights: Float32Array.of(0.5, 0.5), mass: 2 }
      const wrong: Partial<Merge>[] = [
        { into: 6 },
        { from: Int32Array.of(5, 39) },
        { from: Int32Array.of(6, 5) },
        { from: Int32Array.of(5, 40) },
        { weights: Float32Array.of(0.5) },
        { weights: Float32Array.of(0.5, Number.NaN) },
        { mass: 0.5 },
        { mass: Number.POSITIVE_INFINITY },
      ]
      for (const change of wrong) {
        const merges = rows.map((heads) => heads.map(() => [{ ...good, ...change }]))
        assert.throws(() => carryOut(store, s, { kind: 'keep', rows, merges }, carryOutTools(executor)), {
          code: 'INVALID_ARGUMENT',
        })
      }
      assert.equal(s.columns[0]!.rows, 40)
      assert.equal(s.layout, 'uniform')
    }))
})
