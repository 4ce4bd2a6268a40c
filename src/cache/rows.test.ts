/** Rows as numbers, against plain loops over the bytes in the cells. */
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { cpuDevice } from '../ggml/device.ts'
import { backend, Random, rmsError, runner } from '../ggml/fixture.test.ts'
import { fromFloats, toFloats } from '../ggml/numbers.ts'
import { liveNatives } from '../ggml/owned.ts'
import { type ArenaFormat, CACHE_TYPES, type CacheType, PAGE_CELLS } from './arena.ts'
import { cellBytes } from './cells.fixture.ts'
import { checkStore } from './check.ts'
import { mergeRows, type RowData, readRows, requantize, writeRows } from './rows.ts'
import type { KvSequence } from './sequence.ts'
import { KvStore } from './store.ts'

const DIMS = { layers: 2, headDim: 64, kvHeads: 3 } as const
const D = DIMS.headDim

after(() => {
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

const rowMajor = (type: CacheType): ArenaFormat => ({ keyType: type, valueType: type, valuesTransposed: false })
const F16: ArenaFormat = { keyType: 'f16', valueType: 'f16', valuesTransposed: true }
const formats: ArenaFormat[] = [
  ...CACHE_TYPES.map(rowMajor),
  ...(['f16', 'bf16', 'f32'] as const).map((type) => ({
    keyType: 'q8_0' as const,
    valueType: type,
    valuesTransposed: true,
  })),
]
const show = (f: ArenaFormat) => `${f.keyType}, ${f.valueType}${f.valuesTransposed ? ' transposed' : ''}`

/** Largest relative error (rms) of normal numbers in each type; the least exact has 4 bits, 1/16 of the range. */
const ERROR: Record<CacheType, number> = {
  f32: 0,
  f16: 1e-3,
  bf16: 5e-3,
  q8_0: 0.01,
  q5_1: 0.05,
  q5_0: 0.06,
  q4_1: 0.1,
  q4_0: 0.12,
  iq4_nl: 0.12,
}

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

function normals(r: Random, n: number): Float32Array {
  return Float32Array.from({ length: n }, () => r.normal())
}

/** Dequantised row in a logical cell, by a plain loop. */
function plain(store: KvStore, s: KvSequence, what: 'keys' | 'values', layer: number, head: number, cell: number) {
  const c = s.column(layer, head, DIMS.kvHeads)
  const arena = store.rowArena(c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena)
  const type = what === 'keys' ? arena.shape.keyType : arena.shape.valueType
  return toFloats(type, cellBytes(arena, what, layer, head, c.physical(cell)), D)
}

function plainRows(store: KvStore, s: KvSequence, layer: number, heads: readonly number[], cells: readonly number[]) {
  const all = (what: 'keys' | 'values') =>
    Float32Array.from(heads.flatMap((h) => cells.flatMap((cell) => [...plain(store, s, what, layer, h, cell)])))
  return { keys: all('keys'), values: all('values') }
}

/** Every cell of a sequence filled with normal numbers. */
function fill(store: KvStore, s: KvSequence, r: Random): void {
  for (let layer = 0; layer < DIMS.layers; layer++)
    for (let head = 0; head < DIMS.kvHeads; head++) {
      const c = s.column(layer, head, DIMS.kvHeads)
      const n = D * c.end
      writeRows(runner, store, s, layer, head, range(0, c.end), { keys: normals(r, n), values: normals(r, n) })
    }
}

/** All rows of a column by position: [position] -> numbers of key and value. */
function byPosition(store: KvStore, s: KvSequence, layer: number, head: number): Map<number, number[]> {
  const c = s.column(layer, head, DIMS.kvHeads)
  return new Map(
    c
      .usedCells()
      .map((cell) => [
        c.positions[cell]!,
        [...plain(store, s, 'keys', layer, head, cell), ...plain(store, s, 'values', layer, head, cell)],
      ]),
  )
}

function twoArenas(first: ArenaFormat, second: ArenaFormat, pages = 8): KvStore {
  return new KvStore(
    {
      ...DIMS,
      arenas: [
        { ...first, pages },
        { ...second, pages },
      ],
    },
    cpuDevice(),
  )
}

describe('readRows and writeRows', () => {
  for (const format of formats)
    it(`agree with plain loops: ${show(format)}`, () => {
      using store = new KvStore({ ...DIMS, arenas: [{ ...format, pages: 16 }] }, cpuDevice())
      const r = new Random(3)
      // Pages that do not lie in order.
      const other = store.create(0)
      const s = store.create(0)
      for (let i = 0; i < 90; i += 30) for (const q of [other, s]) store.append(q, range(i, i + 30))
      const cells = [70, 3, 31, 32, 64, 0, 89]
      for (const head of ['all', 1] as const) {
        const heads = head === 'all' ? [0, 1, 2] : [head]
        fill(store, s, r)
        const before = range(0, DIMS.kvHeads).map((h) => byPosition(store, s, 1, h))
        const n = D * cells.length * heads.length
        const rows: RowData = { keys: normals(r, n), values: normals(r, n) }
        writeRows(runner, store, s, 1, head, cells, rows)
        const got = readRows(runner, store, s, 1, head, cells)
        assert.deepEqual(got, plainRows(store, s, 1, heads, cells))
        for (const what of ['keys', 'values'] as const) {
          const type = what === 'keys' ? format.keyType : format.valueType
          const error = rmsError(got[what], rows[what])
          assert.ok(error <= ERROR[type], `${type}: ${error}`)
          // The other quantiser (of files) may search longer; neither may be much the worse.
          const file = rmsError(toFloats(type, fromFloats(type, rows[what], D), n), rows[what])
          assert.ok(error <= 1.2 * file + 1e-9, `${type}: ${error}, by the other way ${file}`)
        }
        // Everything else is as it was.
        for (const h of range(0, DIMS.kvHeads))
          for (const [position, row] of byPosition(store, s, 1, h))
            if (!heads.includes(h) || !cells.includes(position)) assert.deepEqual(row, before[h]!.get(position))
      }
      assert.deepEqual(readRows(runner, store, s, 0, 'all', []), {
        keys: new Float32Array(),
        values: new Float32Array(),
      })
    })

  it('read columns of several arenas that differ by head', () => {
    using store = twoArenas(F16, rowMajor('q8_0'))
    const s = store.create(0)
    store.append(s, range(0, 70))
    store.makeRagged(s)
    fill(store, s, new Random(5))
    requantize(runner, store, s, 1, range(10, 40), 1)
    const cells = [0, 5, 33, 34, 60]
    assert.deepEqual(readRows(runner, store, s, 0, 'all', cells), plainRows(store, s, 0, [0, 1, 2], cells))
  })

  it('write copies of what others hold too', () => {
    using store = new KvStore({ ...DIMS, arenas: [{ ...F16, pages: 8 }] }, cpuDevice())
    const s = store.create(0)
    store.append(s, range(0, 40))
    fill(store, s, new Random(6))
    const f = store.fork(s, 0)
    const before = byPosition(store, s, 0, 2)
    const zeros = new Float32Array(D)
    writeRows(runner, store, f, 0, 2, [33], { keys: zeros, values: zeros })
    assert.deepEqual(byPosition(store, s, 0, 2), before)
    assert.deepEqual(plain(store, f, 'keys', 0, 2, 33), zeros)
    assert.deepEqual([...plain(store, f, 'values', 1, 0, 33)], [...plain(store, s, 'values', 1, 0, 33)])
    // No room for a copy.
    const filler = store.create(0)
    store.append(filler, range(0, 5 * PAGE_CELLS))
    assert.throws(() => writeRows(runner, store, f, 0, 2, [3], { keys: zeros, values: zeros }), isCode('KV_BUDGET'))
    checkStore(store, [])
  })
})

describe('requantize', () => {
  for (const format of formats)
    for (const layout of ['uniform', 'ragged'] as const)
      it(`moves rows to ${show(format)} and back, ${layout}`, () => {
        using store = twoArenas(F16, format)
        const r = new Random(7)
        const s = store.create(0)
        store.append(s, range(0, 100))
        if (layout === 'ragged') store.makeRagged(s)
        fill(store, s, r)
        const column = layout === 'ragged' ? 4 : 0 // layer 1, head 1
        const before = byPosition(store, s, 1, 1)
        const others = byPosition(store, s, 1, 0)
        const used = store.usedBytes
        // Two whole blocks and a part of the last one.
        const cells = [...range(32, 96), 97, 98]
        const freed = requantize(runner, store, s, column, cells, 1)
        assert.equal(freed, used - store.usedBytes)
        const unit = layout === 'ragged' ? 1 : DIMS.layers * DIMS.kvHeads
        assert.equal(freed, unit * (2 * store.home.blockBytes - 3 * store.rowArena(1).blockBytes))
        checkStore(store, [])
        const c = s.columns[column]!
        assert.equal(c.rows, 100)
        const got = byPosition(store, s, 1, 1)
        for (const [position, row] of before) {
          const moved = position >= 32 && position !== 96 && position !== 99
          const error = rmsError(got.get(position)!, row)
          const bound = Math.max(ERROR[format.keyType], ERROR[format.valueType])
          // Single rows scatter more than the mean of many.
          assert.ok(moved ? error <= 2 * bound + 1e-9 : error === 0, `position ${position}: ${error}`)
        }
        if (layout === 'ragged') assert.deepEqual(byPosition(store, s, 1, 0), others)
        // Holes in the other arena are filled before it takes a block more.
        const blocks = c.blocks.filter((b) => b.arena === 1).length
        requantize(
          runner,
          store,
          s,
          column,
          c.usedCells().filter((cell) => c.positions[cell]! < 20),
          1,
        )
        assert.equal(c.blocks.filter((b) => b.arena === 1).length, blocks)
        checkStore(store, [])
        // The next row goes to the sequence's own arena.
        store.append(s, [100])
        assert.equal(c.blocks[Math.floor((c.end - 1) / PAGE_CELLS)]!.arena, 0)
        store.takeBack(s, 1)
        // And back: what was rounded once stays the same.
        const rounded = byPosition(store, s, 1, 1)
        requantize(runner, store, s, column, c.usedCells(), 0)
        assert.ok(c.blocks.every((b) => b.arena === 0))
        for (const [position, row] of byPosition(store, s, 1, 1))
          assert.ok(rmsError(row, rounded.get(position)!) < 1e-3, `position ${position} back`)
        store.compact(s, column)
        assert.deepEqual([c.rows, c.end, c.blocks.length], [100, 100, 4])
        checkStore(store, [])
        store.free(s)
        assert.equal(store.usedBytes, 0)
      })

  it('leaves everything as it was when the other arena has no room', () => {
    using store = twoArenas(F16, rowMajor('q8_0'))
    const s = store.create(0)
    store.append(s, range(0, 60))
    const filler = store.create(0, 1)
    store.append(filler, range(0, 7 * PAGE_CELLS))
    fill(store, s, new Random(8))
    const [before, blocks] = [byPosition(store, s, 0, 0), [...s.columns[0]!.blocks]]
    assert.throws(() => requantize(runner, store, s, 0, range(0, 40), 1), isCode('KV_BUDGET'))
    assert.deepEqual(byPosition(store, s, 0, 0), before)
    assert.deepEqual(s.columns[0]!.blocks, blocks)
    checkStore(store, [])
  })
})

describe('mergeRows', () => {
  for (const type of ['f16', 'q8_0', 'f32'] as const)
    it(`writes weighted sums, ${type}`, () => {
      using store = new KvStore(
        { ...DIMS, arenas: [{ ...(type === 'f16' ? F16 : rowMajor(type)), pages: 16 }] },
        cpuDevice(),
      )
      for (const layout of ['uniform', 'ragged'] as const) {
        const s = store.create(0)
        store.append(s, range(0, 70))
        if (layout === 'ragged') store.makeRagged(s)
        fill(store, s, new Random(9))
        const f = store.fork(s, 0)
        const column = layout === 'ragged' ? 5 : 0 // layer 1, head 2
        const before = byPosition(store, s, 1, 2)
        const groups = [
          {
            into: 2,
            from: [
              { cell: 2, weight: 0.5 },
              { cell: 40, weight: 0.3 },
              { cell: 41, weight: 0.2 },
            ],
          },
          {
            into: 69,
            from: [
              { cell: 41, weight: -1 },
              { cell: 2, weight: 2 },
            ],
          },
        ]
        mergeRows(runner, store, s, column, groups)
        const got = byPosition(store, s, 1, 2)
        assert.deepEqual(
          [...got.keys()].sort((a, b) => a - b),
          range(0, 70).filter((p) => p !== 40 && p !== 41),
        )
        for (const [position, row] of got) {
          const group = groups.find((g) => g.into === position)
          const want = group
            ? row.map((_, i) => group.from.reduce((sum, { cell, weight }) => sum + weight * before.get(cell)![i]!, 0))
            : before.get(position)!
          const error = rmsError(row, want)
          assert.ok(group ? error <= 2 * ERROR[type] + 1e-6 : error === 0, `position ${position}: ${error}`)
        }
        // Whoever shared the rows still has its own.
        assert.deepEqual(byPosition(store, f, 1, 2), before)
        if (layout === 'ragged') assert.equal(s.columns[4]!.rows, 70)
        checkStore(store, [])
        store.free(s)
        store.free(f)
      }
    })
})

describe('what cannot be done is refused before anything happens', () => {
  it('with names', () => {
    using store = twoArenas(F16, rowMajor('q8_0'))
    using elsewhere = twoArenas(F16, rowMajor('q8_0'))
    const s = store.create(0)
    store.append(s, range(0, 40))
    store.drop(s, 0, [7])
    const stranger = elsewhere.create(0)
    const one = { keys: new Float32Array(D), values: new Float32Array(D) }
    const nan = { keys: one.keys, values: new Float32Array(D).fill(Number.NaN) }
    const group = (into: number, cell: number, weight = 1) => [{ into, from: [{ cell, weight }] }]
    for (const wrong of [
      () => readRows(runner, store, s, 2, 0, [1]),
      () => readRows(runner, store, s, 0, 3, [1]),
      () => readRows(runner, store, s, 0, -1, [1]),
      () => readRows(runner, store, s, 0, 0, [40]),
      () => readRows(runner, store, s, 0, 0, [0.5]),
      () => readRows(runner, store, stranger, 0, 0, []),
      () => writeRows(runner, store, s, 0, 0, [1, 2], one),
      () =>
        writeRows(runner, store, s, 0, 0, [1, 1], { keys: new Float32Array(2 * D), values: new Float32Array(2 * D) }),
      () => writeRows(runner, store, s, 0, 0, [1], nan),
      () => writeRows(runner, store, s, 0, 0, [-1], one),
      () => requantize(runner, store, s, 1, [1], 1),
      () => requantize(runner, store, s, 0, [1], 2),
      () => requantize(runner, store, s, 0, [7], 1),
      () => requantize(runner, store, s, 0, [1, 1], 1),
      () => mergeRows(runner, store, s, 0, group(7, 1)),
      () => mergeRows(runner, store, s, 0, group(1, 7)),
      () => mergeRows(runner, store, s, 0, group(1, 2, Number.POSITIVE_INFINITY)),
      () => mergeRows(runner, store, s, 0, [...group(1, 2), ...group(1, 3)]),
      () => mergeRows(runner, store, s, 0, [{ into: 1, from: [] }]),
    ])
      assert.throws(wrong, isCode('INVALID_ARGUMENT'), `${wrong}`)
    assert.equal(s.rows, 39)
    checkStore(store, [])
  })
})
