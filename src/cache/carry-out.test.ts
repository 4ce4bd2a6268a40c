import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'
import { cpuDevice } from '../ggml/device.ts'
import { backend, Random, runner } from '../ggml/fixture.test.ts'
import { rowBytes } from '../ggml/types.ts'
import { PAGE_CELLS } from './arena.ts'
import { carryOut } from './carry-out.ts'
import { isCell, setCell } from './cells.fixture.ts'
import { checkStore } from './check.ts'
import type { KvSequence } from './sequence.ts'
import { KvStore } from './store.ts'

const DIMS = { layers: 2, headDim: 32, kvHeads: 2 } as const
const ARENA = { keyType: 'f16', valueType: 'f16', valuesTransposed: true, pages: 32 } as const

after(() => {
  runner.dispose()
  backend.dispose()
})

/** A row's key bytes: its position, layer and head, so that every row is told from every other. */
function rowOf(position: number, layer: number, head: number): Uint8Array {
  const bytes = new Uint8Array(rowBytes(ARENA.keyType, DIMS.headDim))
  for (let i = 0; i < bytes.length; i++) bytes[i] = (position * 7 + layer * 31 + head * 17 + i) % 251
  return bytes
}

function filled(store: KvStore, rows: number): KvSequence {
  const s = store.create(rows)
  store.reserve(s, rows)
  store.append(
    s,
    Int32Array.from({ length: rows }, (_, i) => i),
  )
  const [column] = s.columns
  for (let layer = 0; layer < DIMS.layers; layer++)
    for (let head = 0; head < DIMS.kvHeads; head++)
      for (let i = 0; i < rows; i++)
        setCell(store.home, 'keys', layer, head, column!.physical(i), rowOf(i, layer, head))
  return s
}

/** Every row that is there has the bytes that it was written with. */
function checkRows(store: KvStore, s: KvSequence, expected: (layer: number, head: number) => readonly number[]): void {
  for (let layer = 0; layer < DIMS.layers; layer++)
    for (let head = 0; head < DIMS.kvHeads; head++) {
      const column = s.column(layer, head, DIMS.kvHeads)
      const cells = [...column.byPosition]
      const positions = cells.map((c) => column.positions[c]!)
      assert.deepEqual(positions, [...expected(layer, head)])
      for (const [i, cell] of cells.entries())
        assert.ok(
          isCell(store.home, 'keys', layer, head, column.physical(cell), rowOf(positions[i]!, layer, head)),
          `row ${positions[i]} of layer ${layer}, head ${head} has other bytes`,
        )
    }
  checkStore(store, [])
}

const everywhere = (rows: Int32Array) =>
  Array.from({ length: DIMS.layers }, () => Array.from({ length: DIMS.kvHeads }, () => rows))

describe('carryOut', () => {
  it('keeps other rows in each head, and frees whole blocks', () => {
    using store = new KvStore({ ...DIMS, arenas: [ARENA] }, cpuDevice())
    const rows = 300
    const s = filled(store, rows)
    const random = new Random(5)
    const plan = Array.from({ length: DIMS.layers }, (_, layer) =>
      Array.from({ length: DIMS.kvHeads }, (_, head) => {
        const keep = 40 + 50 * layer + 20 * head
        const all = Array.from({ length: rows }, (_, i) => [random.next(), i] as const).sort((a, b) => a[0] - b[0])
        return Int32Array.from(all.slice(0, keep).map(([, i]) => i)).sort()
      }),
    )
    carryOut(store, s, { kind: 'keep', rows: plan })
    assert.equal(s.layout, 'ragged')
    checkRows(store, s, (layer, head) => [...plan[layer]![head]!])
    // A block holds 32 rows; a head takes no more than its rows need.
    for (const [i, column] of s.columns.entries()) {
      const kept = plan[Math.floor(i / DIMS.kvHeads)]![i % DIMS.kvHeads]!.length
      assert.ok(column.blocks.length <= Math.ceil(kept / PAGE_CELLS), `${column.blocks.length} blocks for ${kept}`)
    }
    // All heads in the same pages, one behind the other, so that attention reads them where they lie.
    const longest = s.columns.reduce((a, b) => (a.blocks.length >= b.blocks.length ? a : b))
    assert.equal(longest.runs.length, 1)
    for (const c of s.columns) assert.deepEqual(c.blocks, longest.blocks.slice(0, c.blocks.length))
    // Rows that come now go behind what was kept, at the positions that they really have.
    store.reserve(s, 40)
    store.append(
      s,
      Int32Array.from({ length: 40 }, (_, i) => rows + i),
    )
    assert.deepEqual(
      [...s.columns[0]!.byPosition].slice(-2).map((c) => s.columns[0]!.positions[c]!),
      [rows + 38, rows + 39],
    )
    checkStore(store, [])
    store.free(s)
    assert.equal(store.usedBytes, 0)
  })

  it('leaves a table uniform when all heads keep the same', () => {
    using store = new KvStore({ ...DIMS, arenas: [ARENA] }, cpuDevice())
    const s = filled(store, 200)
    const kept = Int32Array.from([0, 1, 2, 3, ...Array.from({ length: 60 }, (_, i) => 140 + i)])
    carryOut(store, s, { kind: 'keep', rows: everywhere(kept) })
    assert.equal(s.layout, 'uniform')
    checkRows(store, s, () => [...kept])
    assert.ok(store.usedBytes <= 3 * store.home.pageBytes, `${store.usedBytes} bytes`)
    // and again, of what is left
    carryOut(store, s, { kind: 'keep', rows: everywhere(Int32Array.from({ length: 20 }, (_, i) => 44 + i)) })
    checkRows(store, s, () => [...kept.slice(44)])
    store.free(s)
  })

  it('copies what others share: a fork keeps all of its rows', () => {
    using store = new KvStore({ ...DIMS, arenas: [ARENA] }, cpuDevice())
    const s = filled(store, 150)
    const other = store.fork(s, 150)
    const kept = [Int32Array.from([5, 70, 149]), Int32Array.from({ length: 75 }, (_, i) => 2 * i)] as const
    carryOut(store, s, { kind: 'keep', rows: [kept, kept] })
    checkRows(store, s, (_, head) => [...kept[head as 0 | 1]])
    checkRows(store, other, () => Array.from({ length: 150 }, (_, i) => i))
    store.free(s)
    store.free(other)
    assert.equal(store.usedBytes, 0)
  })

  it('refuses plans that do not fit, and changes nothing', () => {
    using store = new KvStore({ ...DIMS, arenas: [ARENA] }, cpuDevice())
    const s = filled(store, 50)
    const wrong: readonly (readonly (readonly Int32Array[])[])[] = [
      [],
      [[Int32Array.of(0)], [Int32Array.of(0)]],
      everywhere(Int32Array.of(50)),
      everywhere(Int32Array.of(-1)),
      everywhere(Int32Array.of(3, 3)),
      everywhere(Int32Array.of(5, 2)),
      everywhere(Int32Array.of()),
    ]
    for (const rows of wrong)
      assert.throws(() => carryOut(store, s, { kind: 'keep', rows }), { code: 'INVALID_ARGUMENT' })
    checkRows(store, s, () => Array.from({ length: 50 }, (_, i) => i))
    carryOut(store, s, { kind: 'keep-all' })
    checkRows(store, s, () => Array.from({ length: 50 }, (_, i) => i))
  })
})
