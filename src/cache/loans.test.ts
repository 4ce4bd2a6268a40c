/** Room that a store's first arena gives to arenas of other types. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import fc from 'fast-check'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { Arena, type CacheType, PAGE_CELLS } from './arena.ts'
import { checkStore } from './check.ts'
import type { BlockRef } from './column.ts'
import type { KvSequence } from './sequence.ts'
import { KvStore } from './store.ts'

let natives: Record<string, number>
before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

const DIMS = { layers: 2, headDim: 32, kvHeads: 2 }
const PAGES = 32

function storeOf(): KvStore {
  const arena = { keyType: 'f16', valueType: 'f16', valuesTransposed: true, pages: PAGES } as const
  return new KvStore({ ...DIMS, arenas: [arena] }, cpuDevice())
}

/** An arena of one type, as large as if all memory were its own. */
function borrow(store: KvStore, type: CacheType, pages = 128): number {
  const format = { ...DIMS, keyType: type, valueType: type, valuesTransposed: false, pages }
  return store.borrower(type, () => new Arena(format, cpuDevice()))
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

describe('borrowed room', () => {
  it('is as large as what it takes the place of, and comes back', () => {
    using store = storeOf()
    const [f32, q4] = [borrow(store, 'f32'), borrow(store, 'q4_0')]
    assert.equal(borrow(store, 'f32'), f32)
    // A page of f32 is two of f16, 32 of q4_0 are nine.
    assert.deepEqual([store.homePages(f32, 5), store.homePages(q4, 5), store.homePages(q4, 32)], [10, 2, 9])
    assert.deepEqual([store.mostPages(0), store.mostPages(f32), store.mostPages(q4)], [PAGES, PAGES / 2, 113])
    const s = store.create(0, f32)
    store.append(s, upTo(3 * PAGE_CELLS))
    store.reclaim()
    assert.equal(store.lentPages.length, 6)
    assert.equal(store.pagesToBorrow(f32, 2), 4)
    assert.deepEqual([store.pagesReturned(f32, 1), store.pagesReturned(f32, 3), store.pagesReturned(0, 3)], [2, 6, 3])
    assert.equal(store.ownPages(s), 6)
    assert.equal(store.heldBytes(s), 3 * store.arenas[f32]!.pageBytes)
    checkStore(store, [])
    store.free(s)
    assert.deepEqual(store.lentPages, [])
  })

  it('is refused where the first arena has none, and then nothing is taken', () => {
    using store = storeOf()
    const f32 = borrow(store, 'f32')
    const s = store.create(0)
    store.append(s, upTo((PAGES - 3) * PAGE_CELLS))
    const page = store.takePage(f32, null)!
    assert.equal(store.takePage(f32, null), null)
    assert.equal(store.takeRun(f32, 2), null)
    checkStore(store, [page])
    assert.throws(() => store.append(store.create(0, f32), upTo(64)), { code: 'KV_BUDGET' })
    store.releasePage(page)
    assert.deepEqual(store.lentPages, [])
    const run = store.takeRun(f32, 1)!
    checkStore(store, run)
    assert.equal(store.lentPages.length, 3, 'one more than needed: there was room')
    store.reclaim()
    assert.equal(store.lentPages.length, 2)
  })

  it('never sums up to more than there is, whatever is taken and released', () => {
    const types = ['f16', 'f32', 'q8_0', 'q4_0', 'iq4_nl'] as const
    const command = fc.record({
      what: fc.constantFrom('append', 'free', 'take', 'run', 'release', 'reclaim', 'fork'),
      arena: fc.nat(4),
      n: fc.nat(200),
    })
    fc.assert(
      fc.property(fc.array(command, { maxLength: 60 }), (commands) => {
        using store = storeOf()
        const arenas = types.map((t, i) => (i === 0 ? 0 : borrow(store, t)))
        const sequences: KvSequence[] = []
        const held: BlockRef[] = []
        for (const { what, arena, n } of commands) {
          if (what === 'append') {
            const s = store.create(n, arenas[arena]!)
            const pages = store.pagesNeeded(s, n + 1)
            store.reclaim()
            const fits = store.pagesToBorrow(s.arena, pages) <= store.pools[0]!.freePages
            try {
              store.append(s, upTo(n + 1))
              assert.ok(fits)
            } catch (error) {
              assert.ok(!fits, `${error}`)
            }
            sequences.push(s)
          } else if (what === 'fork' && sequences.length) {
            const s = sequences[n % sequences.length]!
            sequences.push(store.fork(s, 0))
          } else if (what === 'free' && sequences.length) {
            store.free(sequences.splice(n % sequences.length, 1)[0]!)
          } else if (what === 'take') {
            const page = store.takePage(arenas[arena]!, null)
            if (page) held.push(page)
          } else if (what === 'run') {
            held.push(...(store.takeRun(arenas[arena]!, 1 + (n % 5)) ?? []))
          } else if (what === 'release' && held.length) store.releasePage(held.splice(n % held.length, 1)[0]!)
          else if (what === 'reclaim') store.reclaim()
          checkStore(store, held)
          assert.ok(store.usedBytes <= store.bytes, `${store.usedBytes} of ${store.bytes}`)
        }
        for (const s of sequences) store.free(s)
        for (const b of held) store.releasePage(b)
        assert.deepEqual([store.lentPages.length, store.usedBytes], [0, 0])
      }),
      { numRuns: 60 },
    )
  })
})

it('memory of a format is given back when nobody holds a page of it', () => {
  const unusual = { keyType: 'q5_0', valueType: 'q5_1', valuesTransposed: false } as const
  const pages = 4096
  const dims = { layers: 4, headDim: 64, kvHeads: 2 }
  const shape = { ...dims, arenas: [{ keyType: 'f16', valueType: 'f16', valuesTransposed: false, pages }] } as const
  using store = new KvStore(shape, cpuDevice())
  const arena = store.borrower('q5', () => new Arena({ ...dims, ...unusual, pages }, cpuDevice()))
  const row = new Uint8Array(store.rowArena(arena).pageBytes).fill(1)
  const resident = () => process.memoryUsage().rss
  const before = resident()
  const s = store.create(0, arena)
  store.append(
    s,
    Array.from({ length: 32 * 2000 }, (_, i) => i),
  )
  for (const { page } of s.columns[0]!.blocks) store.rowArena(arena).writePage(page, row)
  const taken = 2000 * row.length
  if (process.platform === 'linux') assert.ok(resident() - before > 0.9 * taken, 'written memory is resident')
  store.free(s)
  assert.equal(store.lentPages.length, 0)
  if (process.platform === 'linux') assert.ok(resident() - before < 0.2 * taken, 'free memory is not')
})
