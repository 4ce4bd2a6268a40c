/** Bytes of pages, blocks and rows, against the tensors' own memory. */
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import type { PageId } from '../contract/units.ts'
import { cpuDevice } from '../ggml/device.ts'
import { backend, Random, runner } from '../ggml/fixture.test.ts'
import { liveNatives } from '../ggml/owned.ts'
import { canGiveBack } from '../ggml/posix.ts'
import { Arena, type ArenaFormat, arenaBytes, blockBytes, CACHE_TYPES, PAGE_CELLS, pageBytes } from './arena.ts'
import { cellBytes, memoryOf, setCell } from './cells.fixture.ts'

const DIMS = { layers: 2, headDim: 32, kvHeads: 3 } as const

after(() => {
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

const formats: ArenaFormat[] = [
  ...CACHE_TYPES.map((type) => ({ keyType: type, valueType: type, valuesTransposed: false })),
  ...(['f16', 'bf16', 'f32'] as const).map((type) => ({
    keyType: 'q8_0' as const,
    valueType: type,
    valuesTransposed: true,
  })),
]

function filled(format: ArenaFormat, pages: number): Arena {
  const arena = new Arena({ ...DIMS, ...format, pages }, cpuDevice())
  const r = new Random(pages)
  for (let layer = 0; layer < DIMS.layers; layer++)
    for (const t of [arena.keys(layer), arena.values(layer)]) {
      const bytes = memoryOf(t)
      for (let i = 0; i < bytes.length; i++) bytes[i] = r.int(0, 255)
    }
  return arena
}

/** What `readPage` promises: for each layer its keys by head, then its values by head (transposed: by head and element). */
function pageOf(arena: Arena, page: number): number[] {
  const out: number[] = []
  for (let layer = 0; layer < DIMS.layers; layer++)
    for (const what of ['keys', 'values'] as const)
      for (let head = 0; head < DIMS.kvHeads; head++) out.push(...blockOf(arena, what, layer, head, page))
  return out
}

function blockOf(arena: Arena, what: 'keys' | 'values', layer: number, head: number, page: number): number[] {
  const rows = Array.from({ length: PAGE_CELLS }, (_, i) => cellBytes(arena, what, layer, head, page * PAGE_CELLS + i))
  if (what === 'keys' || !arena.shape.valuesTransposed) return rows.flatMap((r) => [...r])
  const size = rows[0]!.length / DIMS.headDim
  const elements = Array.from({ length: DIMS.headDim }, (_, e) => e)
  return elements.flatMap((e) => rows.flatMap((r) => [...r.subarray(e * size, (e + 1) * size)]))
}

describe('an arena', () => {
  for (const format of formats) {
    const { keyType, valueType, valuesTransposed } = format
    const name = `${keyType}, ${valueType}${valuesTransposed ? ' transposed' : ''}`
    it(`gives memory of some pages back, and of no others: ${name}`, { skip: !canGiveBack && 'Linux only' }, () => {
      using a = filled(format, 512)
      const around = [0, 99, 400, 511].map((p) => a.readPage(p))
      assert.equal(a.giveBack(200, 200), 0)
      assert.ok(a.giveBack(100, 400) > 0.5 * 300 * a.pageBytes)
      assert.deepEqual(
        [0, 99, 400, 511].map((p) => a.readPage(p)),
        around,
      )
      // Keys lie side by side: those in the middle are gone for certain.
      for (const layer of [0, 1])
        assert.ok(
          a
            .readBlock(layer, 2, 250)
            .subarray(0, 32)
            .every((b) => b === 0),
        )
    })
  }

  for (const format of formats) {
    const { keyType, valueType, valuesTransposed } = format
    it(`moves pages, blocks and rows: ${keyType}, ${valueType}${valuesTransposed ? ' transposed' : ''}`, () => {
      using a = filled(format, 8)
      using b = filled(format, 16) // other strides
      assert.equal(a.pageBytes, pageBytes({ ...format, ...DIMS }))
      assert.equal(a.blockBytes, blockBytes(format, DIMS.headDim))
      assert.ok(a.bytes >= arenaBytes(a.shape) && a.bytes < arenaBytes(a.shape) + 4096)

      const page = a.readPage(3)
      assert.deepEqual([...page], pageOf(a, 3))
      const [before, behind] = [pageOf(b, 8), pageOf(b, 10)]
      // As it comes out of a file: a Node Buffer somewhere in a larger one.
      const odd = Buffer.alloc(page.length + 3)
      odd.set(page, 3)
      b.writePage(9, odd.subarray(3))
      assert.deepEqual(pageOf(b, 9), [...page])
      assert.deepEqual([pageOf(b, 8), pageOf(b, 10)], [before, behind])
      b.copyPage(9, 1)
      assert.deepEqual(pageOf(b, 1), [...page])

      const block = a.readBlock(1, 2, 5)
      assert.deepEqual([...block], [...blockOf(a, 'keys', 1, 2, 5), ...blockOf(a, 'values', 1, 2, 5)])
      odd.set(block, 3)
      b.writeBlock(0, 1, 7, odd.subarray(3, 3 + block.length))
      assert.deepEqual([...b.readBlock(0, 1, 7)], [...block])

      for (const what of ['keys', 'values'] as const) {
        const others = [cellBytes(b, what, 1, 2, 68), cellBytes(b, what, 1, 2, 70), cellBytes(b, what, 1, 1, 69)]
        a.copyRow(1, 2, 40, 69, b)
        assert.deepEqual(cellBytes(b, what, 1, 2, 69), cellBytes(a, what, 1, 2, 40))
        assert.deepEqual(
          [cellBytes(b, what, 1, 2, 68), cellBytes(b, what, 1, 2, 70), cellBytes(b, what, 1, 1, 69)],
          others,
        )
        setCell(a, what, 0, 0, 0, cellBytes(a, what, 1, 2, 40))
        assert.deepEqual(cellBytes(a, what, 0, 0, 0), cellBytes(b, what, 1, 2, 69))
      }
    })
  }

  it('starts with zeros: 0 x NaN of a masked cell would be NaN', () => {
    using a = new Arena({ ...DIMS, ...formats[0]!, pages: 1 }, cpuDevice())
    assert.deepEqual([a.pages, a.cells], [8, 256])
    assert.ok(memoryOf(a.keys(1)).every((x) => x === 0))
    assert.ok(a.readPage(7 as PageId).every((x) => x === 0))
  })

  it('is refused where it cannot be, and nothing leaks', () => {
    const good = { ...DIMS, ...formats[0]!, pages: 8 }
    const natives = liveNatives()
    for (const wrong of [
      { pages: 0 },
      { pages: 1.5 },
      { layers: 0 },
      { headDim: 80, keyType: 'q8_0' },
      { valueType: 'q8_0', valuesTransposed: true },
      { keyType: 'q2_K' },
      { pages: 2 ** 24 },
    ])
      assert.throws(
        () => new Arena({ ...good, ...wrong } as typeof good, cpuDevice()),
        (e) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT',
        JSON.stringify(wrong),
      )
    using a = new Arena(good, cpuDevice())
    assert.throws(() => a.writePage(0, new Uint8Array(7)), /INVALID_ARGUMENT/)
    assert.throws(() => a.writeBlock(0, 0, 0, new Uint8Array(7)), /INVALID_ARGUMENT/)
    a[Symbol.dispose]()
    assert.deepEqual(liveNatives(), natives)
  })
})
