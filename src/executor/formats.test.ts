/** Rows in other formats, read by attention: as if a plain cache held the numbers that they stand for. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../bench/random-model.ts'
import { blockBytes } from '../cache/arena.ts'
import { carryOut } from '../cache/carry-out.ts'
import { checkStore } from '../cache/check.ts'
import { codeBlockBytes } from '../cache/code-arena.ts'
import { readRows, writeRows } from '../cache/rows.ts'
import type { KvSequence } from '../cache/sequence.ts'
import { KvStore } from '../cache/store.ts'
import type { RowFormat } from '../contract/format.ts'
import type { CompressionPlan } from '../contract/policy.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { Model } from '../model/model.ts'
import { Executor } from './run.ts'
import { storeShape } from './store-shape.ts'

const N = 200
const SHAPE = { layers: 4, width: 128, heads: 4, kvHeads: 2, headDim: 64, ffWidth: 256, vocab: 512 } as const
const folder = mkdtempSync(join(tmpdir(), 'kvasir-formats-'))
let natives: Record<string, number>
let model: Model

before(async () => {
  await loadNative()
  natives = liveNatives()
  const path = join(folder, 'model.gguf')
  await writeRandomModel(path, { ...SHAPE, name: 'formats', architecture: 'llama', tied: false, type: 'f32' })
  model = await Model.load(path, () => ({ device: cpuDevice(), contextLength: 512 }))
})
after(() => {
  model[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

interface Bench {
  readonly store: KvStore
  readonly executor: Executor
  readonly makeRoom: number[]
}

type Type = 'f32' | 'f16' | 'q8_0'

async function withBench(type: Type, use: (b: Bench) => Promise<void>): Promise<void> {
  const options = { cells: 4096, keyType: type, valueType: type, lowering: 'auto' } as const
  const store = new KvStore(storeShape(model.config, options, model.device), model.device)
  const executor = new Executor(model, store, { threads: 1, lowering: 'auto' })
  try {
    await use({ store, executor, makeRoom: [] })
  } finally {
    executor[Symbol.dispose]()
    store[Symbol.dispose]()
  }
}

async function run({ store, executor }: Bench, s: KvSequence, from: number, count: number): Promise<Float32Array> {
  const positions = Int32Array.from({ length: count }, (_, i) => from + i)
  store.append(s, positions)
  const { items } = await executor.run({
    items: [
      {
        ...{ sequence: s.id, positions, store: { kind: 'tail' }, layers: { from: 0, to: model.config.layers } },
        ...{
          input: { kind: 'tokens', tokens: positions.map((i) => 3 + ((i * 7919) % 500)) },
          mask: { kind: 'causal' },
        },
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

const all = (rows: (layer: number, head: number) => Int32Array) =>
  Array.from({ length: SHAPE.layers }, (_, l) => Array.from({ length: SHAPE.kvHeads }, (_, h) => rows(l, h)))
const range = (from: number, to: number) => Int32Array.from({ length: to - from }, (_, i) => from + i)

function carry(b: Bench, s: KvSequence, plan: CompressionPlan, formats: readonly RowFormat[] = []): void {
  const { store, executor, makeRoom } = b
  const tools = { runner: () => executor.rowRunner, formats, seed: 1, makeRoom: (n: number) => void makeRoom.push(n) }
  carryOut(store, s, plan, tools)
}

/** The same sequence with the numbers that its rows stand for, all stored as they are. */
function plainOf({ store, executor }: Bench, s: KvSequence, full: KvSequence): KvSequence {
  const plain = store.fork(full, 512)
  store.makeRagged(plain)
  for (let layer = 0; layer < SHAPE.layers; layer++)
    for (let head = 0; head < SHAPE.kvHeads; head++) {
      const from = [...s.column(layer, head, SHAPE.kvHeads).byPosition]
      const into = [...plain.column(layer, head, SHAPE.kvHeads).byPosition]
      const rows = readRows(executor.rowRunner, store, s, layer, head, from)
      writeRows(executor.rowRunner, store, plain, layer, head, into, rows)
    }
  return plain
}

const kivi = (bits: 2 | 4): RowFormat => ({
  kind: 'codes',
  keys: { bits, groups: { by: 'channel' } },
  values: { bits, groups: { by: 'token', size: 32 } },
})
const FORMATS: Readonly<Record<string, RowFormat>> = {
  'kivi, 4 bits': kivi(4),
  'kivi, 2 bits': kivi(2),
  'groups of 8, keys by token': {
    kind: 'codes',
    keys: { bits: 2, groups: { by: 'token', size: 16 } },
    values: { bits: 4, groups: { by: 'token', size: 8 } },
  },
  tiers: {
    kind: 'codes',
    keys: { bits: 4, groups: { by: 'tier' } },
    values: { bits: 4, groups: { by: 'token', size: 32 }, evened: true },
  },
  'outliers and low rank': {
    kind: 'codes',
    keys: { bits: 2, groups: { by: 'channel' }, outliers: 0.1, rank: 2 },
    values: { bits: 2, groups: { by: 'token', size: 32 }, outliers: 0.1, rank: 3 },
  },
  'values by channel': {
    kind: 'codes',
    keys: { bits: 4, groups: { by: 'channel' } },
    values: { bits: 2, groups: { by: 'channel' } },
  },
  q8_0: { kind: 'types', keys: 'q8_0', values: 'q8_0' },
  'q8_0 and q4_1': { kind: 'types', keys: 'q8_0', values: 'q4_1' },
}

describe('rows in other formats', () => {
  for (const type of ['f32', 'f16', 'q8_0'] as const)
    for (const [name, format] of Object.entries(FORMATS))
      it(`${name}, beside ${type}: as if a plain cache held their numbers; one row, 5 rows, 70 rows`, () =>
        withBench(type, async (b) => {
          const { store } = b
          const full = store.create(512)
          await run(b, full, 0, N)
          const s = store.fork(full, 512)
          // Other rows in each head, in two steps.
          const rows = (from: number, to: number) => (layer: number, head: number) =>
            range(from + 3 * layer + head, to).filter((i) => i % (head + 2) !== 0)
          const keep = { kind: 'keep', rows: all(() => range(0, N)) } as const
          carry(b, s, { ...keep, stored: [{ format: 0, rows: all(rows(5, 120)) }] }, [format])
          carry(b, s, { ...keep, stored: [{ format: 0, rows: all(rows(120, 180)) }] }, [format])
          checkStore(store, [])
          const plain = plainOf(b, s, full)
          // What is written into a plain cache is rounded to its type.
          const most = type === 'f32' ? 1e-5 : type === 'f16' ? 2e-3 : 2e-2
          for (const count of [1, 5, 70]) {
            const got = await run(b, s, N, count)
            const off = difference(got, await run(b, plain, N, count))
            assert.ok(off < most, `${count} rows: ${off}`)
            if (count === 1 && format.kind === 'codes') {
              const exact = await run(b, full, N, 1)
              assert.ok(difference(got, exact) > 1e-4, 'something was rounded')
              store.takeBack(full, 1)
            }
            for (const x of [s, plain]) store.takeBack(x, count)
          }
          const fork = store.fork(s, 512)
          assert.deepEqual(await run(b, fork, N, 1), await run(b, s, N, 1), 'a fork reads the same')
          for (const x of [fork, plain, full]) store.free(x)
          checkStore(store, [])
          store.free(s)
          checkStore(store, [])
          assert.equal(store.usedBytes, 0)
          assert.equal(store.lentPages.length, 0)
        }))

  it('bytes are those of the format, and dropped blocks give theirs back', () =>
    withBench('f16', async (b) => {
      const { store } = b
      const s = store.create(512)
      await run(b, s, 0, 192)
      const format = kivi(2)
      const stored = all(() => range(0, 160))
      carry(b, s, { kind: 'keep', rows: all(() => range(0, 192)), stored: [{ format: 0, rows: stored }] }, [format])
      const heads = SHAPE.layers * SHAPE.kvHeads
      if (format.kind !== 'codes') throw new Error('codes are meant')
      const coded = codeBlockBytes(format, 64)
      // 2 bits and a scale and a base, f16, for 32 numbers each; the container of codes takes 66 bytes for 256.
      assert.equal(coded, 2 * ((32 * 64 * 66) / 256 + 64 * 4))
      const plain = blockBytes({ ...({ keyType: 'f16', valueType: 'f16', valuesTransposed: true } as const) }, 64)
      assert.equal(store.heldBytes(s), heads * (5 * coded + plain))
      assert.equal(store.usedBytes, store.heldBytes(s))
      carry(b, s, { kind: 'keep', rows: all(() => range(96, 192)) }, [format])
      assert.equal(store.heldBytes(s), heads * (2 * coded + plain))
      checkStore(store, [])
      await run(b, s, 192, 1)
    }))

  it('count as pages of their own, in whatever arena they are', () =>
    withBench('f32', async (b) => {
      const { store } = b
      const s = store.create(512)
      await run(b, s, 0, 480)
      const rows = all(() => range(0, 480))
      carry(b, s, { kind: 'keep', rows, stored: [{ format: 0, rows }] }, [kivi(4)])
      const own = store.ownPages(s)
      assert.equal(own, Math.floor(store.heldBytes(s) / store.home.pageBytes))
      assert.ok(own >= 2)
      const before = store.pools[0]!.freePages
      const fork = store.fork(s, 512)
      assert.equal(store.ownPages(s), 0)
      store.free(fork)
      store.free(s)
      assert.ok(store.pools[0]!.freePages - before >= own)
    }))

  it('what does not fit is refused, and nothing has changed', () =>
    withBench('f16', async (b) => {
      const { store } = b
      const s = store.create(512)
      await run(b, s, 0, 64)
      const rows = all(() => range(0, 64))
      const plan = (stored: Int32Array, format = 0, over: object = {}): CompressionPlan => ({
        kind: 'keep',
        rows,
        stored: [{ format, rows: all(() => stored) }],
        ...over,
      })
      const refuses = (p: CompressionPlan, text: RegExp) =>
        assert.throws(
          () => carry(b, s, p, [kivi(2)]),
          (e: Error) => text.test(e.message),
        )
      refuses(plan(range(0, 32), 1), /format 1 of 1/)
      refuses(plan(Int32Array.of(3, 3)), /ascend/)
      refuses(plan(range(40, 70)), /ascend and be there/)
      refuses(plan(range(0, 32), 0, { rows: all(() => range(8, 64)) }), /row 0 is not kept/)
      assert.equal(s.layout, 'uniform')
      carry(b, s, plan(range(0, 32)), [kivi(2)])
      refuses(plan(range(31, 64)), /row 31 is in another format already/)
      const merge = { into: 31, from: Int32Array.of(31, 32), weights: Float32Array.of(0.5, 0.5), mass: 2 }
      const kept = range(0, 64).filter((i) => i !== 32)
      const merges: CompressionPlan = {
        kind: 'keep',
        rows: all(() => kept),
        merges: new Array(SHAPE.layers).fill(new Array(SHAPE.kvHeads).fill([merge])),
      }
      refuses(merges, /merges row 31, which is in another format/)
    }))
})

describe('rows that two layers share', () => {
  it('as if a plain cache held the direction times each length', () =>
    withBench('f16', async (b) => {
      const { store } = b
      const full = store.create(512)
      await run(b, full, 0, N)
      const s = store.fork(full, 512)
      const shared = (from: number, to: number) =>
        [0, 2].map((lower) => {
          const rows = Array.from({ length: SHAPE.kvHeads }, (_, h) => {
            const some = range(from + h, to).filter((i) => i % 5 !== 0)
            return some.slice(0, 32 * Math.floor(some.length / 32))
          })
          return { lower, upper: lower + 1, lowerRows: rows, upperRows: rows, t: 0.6 }
        })
      const keep = { kind: 'keep', rows: all(() => range(0, N)) } as const
      const before = store.heldBytes(s)
      carry(b, s, { ...keep, shared: shared(1, 120) })
      carry(b, s, { ...keep, shared: shared(120, 170) })
      checkStore(store, [])
      assert.ok(store.heldBytes(s) < 0.8 * before, `${store.heldBytes(s)} of ${before}`)
      const plain = plainOf(b, s, full)
      const exact = await run(b, full, N, 1)
      store.takeBack(full, 1)
      for (const count of [1, 5, 70]) {
        const got = await run(b, s, N, count)
        const off = difference(got, await run(b, plain, N, count))
        assert.ok(off < 2e-3, `${count} rows: ${off}`)
        if (count === 1) assert.ok(difference(got, exact) > 1e-2, 'directions differ')
        for (const x of [s, plain]) store.takeBack(x, count)
      }
      const fork = store.fork(s, 512)
      assert.deepEqual(await run(b, fork, N, 1), await run(b, s, N, 1), 'a fork reads the same')
      for (const x of [fork, plain, full, s]) store.free(x)
      checkStore(store, [])
      assert.equal(store.usedBytes, 0)
    }))

  it('room is made for copies of what a fork still reads', () =>
    withBench('f16', async (b) => {
      const { store } = b
      const s = store.create(512)
      await run(b, s, 0, N)
      const fork = store.fork(s, 512)
      const before = await run(b, fork, N, 1)
      store.takeBack(fork, 1)
      const rows = Array.from({ length: SHAPE.kvHeads }, () => range(1, 129))
      const shared = [{ lower: 0, upper: 1, lowerRows: rows, upperRows: rows, t: 0.6 }]
      carry(b, s, { kind: 'keep', rows: all(() => range(0, N)), shared })
      assert.ok(Math.max(...b.makeRoom) >= 4, `room for ${b.makeRoom} pages`)
      assert.deepEqual(await run(b, fork, N, 1), before)
      store.free(fork)
      // What its own two layers share is no reason to turn others out.
      b.makeRoom.length = 0
      const more = Array.from({ length: SHAPE.kvHeads }, () => range(129, 193))
      const rest = [{ lower: 0, upper: 1, lowerRows: more, upperRows: more, t: 0.6 }]
      carry(b, s, { kind: 'keep', rows: all(() => range(0, N)), shared: rest })
      assert.deepEqual(
        b.makeRoom.filter((pages) => pages > 0),
        [],
      )
      store.free(s)
      checkStore(store, [])
    }))
})
