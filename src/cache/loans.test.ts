/** Room that a store's first arena gives to arenas of other types. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import fc from 'fast-check'
import type { Codes } from '../contract/format.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { canGiveBack } from '../ggml/posix.ts'
import { Arena, type CacheType, PAGE_CELLS } from './arena.ts'
import { checkStore } from './check.ts'
import { CodeArena } from './code-arena.ts'
import { encode } from './codes.ts'
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

const CODES: Codes = { bits: 4, groups: { by: 'channel' } }

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

const LARGE = { layers: 4, headDim: 64, kvHeads: 2 }

describe('memory that is given back', { skip: !canGiveBack && 'only Linux takes memory back' }, () => {
  const resident = () => process.memoryUsage().rss
  const upToPages = (pages: number) => upTo(pages * PAGE_CELLS)

  /** Fills a sequence's pages with bytes of its own; with one array for all, since garbage is resident too. */
  function write(store: KvStore, s: KvSequence): void {
    const bytes = new Uint8Array(store.rowArena(s.arena).pageBytes)
    for (const { arena, page } of s.columns[0]!.blocks) store.rowArena(arena).writePage(page, bytes.fill(page + 1))
  }

  function isWhole(store: KvStore, s: KvSequence): boolean {
    return s.columns[0]!.blocks.every(({ arena, page }) =>
      store
        .rowArena(arena)
        .readPage(page)
        .every((b) => b === ((page + 1) & 255)),
    )
  }

  for (const valuesTransposed of [true, false])
    it(`follows what is in use${valuesTransposed ? ', values transposed' : ''}, and leaves the rest as it is`, () => {
      const types = { keyType: 'f16', valueType: 'f16', valuesTransposed } as const
      using store = new KvStore({ ...LARGE, arenas: [{ ...types, pages: 4096 }] }, cpuDevice())
      const before = resident()
      const [gone, kept] = [store.create(100_000), store.create(20_000)]
      store.append(gone, upToPages(3000))
      store.append(kept, upToPages(600))
      for (const s of [gone, kept]) write(store, s)
      const { pageBytes } = store.home
      assert.ok(resident() - before > 0.8 * 3600 * pageBytes, 'written memory is resident')
      assert.equal(store.giveBack(0), 0)
      store.free(gone)
      const given = store.giveBack(0)
      assert.ok(given > 0.9 * 3000 * pageBytes && given <= 3496 * pageBytes, `${given} bytes of 3000 pages`)
      assert.equal(store.giveBack(0), 0)
      const left = (resident() - before) / pageBytes
      assert.ok(left < 600 + 600, `${left} pages`)
      assert.ok(isWhole(store, kept))
    })

  it('is a format’s, too, and what was lent to it is not there twice', () => {
    const types = { keyType: 'f16', valueType: 'f16', valuesTransposed: false } as const
    using store = new KvStore({ ...LARGE, arenas: [{ ...types, pages: 4096 }] }, cpuDevice())
    const q5 = { keyType: 'q5_0', valueType: 'q5_1', valuesTransposed: false, pages: 8192 } as const
    const arena = store.borrower('q5', () => new Arena({ ...LARGE, ...q5 }, cpuDevice()))
    const before = resident()
    const first = store.create(100_000)
    store.append(first, upToPages(4000))
    write(store, first)
    store.free(first)
    // All of the first arena is resident; now a format uses nearly all of it.
    const [gone, kept] = [store.create(0, arena), store.create(0, arena)]
    store.append(gone, upToPages(5000))
    store.append(kept, upToPages(1000))
    for (const s of [gone, kept]) write(store, s)
    store.giveBack(0)
    const { pageBytes } = store.rowArena(arena)
    assert.ok(resident() - before < 1.2 * 6000 * pageBytes)
    store.free(gone)
    store.giveBack(0)
    assert.ok(resident() - before < 2000 * pageBytes)
    assert.ok(isWhole(store, kept))
  })

  it('leaves codes beside it as they are', () => {
    const format = { kind: 'codes', keys: CODES, values: CODES } as const
    using arena = new CodeArena(format, LARGE, 1024, cpuDevice())
    const ones = new Float32Array(PAGE_CELLS * LARGE.headDim).map((_, i) => i % 7)
    const encoded = encode(ones, CODES, LARGE.headDim, { tier: null, balance: null, seed: 1 }).blocks[0]!
    const each = (pages: readonly number[], use: (layer: number, head: number, page: number) => void) => {
      for (let layer = 0; layer < LARGE.layers; layer++)
        for (let head = 0; head < LARGE.kvHeads; head++) for (const page of pages) use(layer, head, page)
    }
    each(upTo(1024), (...at) => arena.write(...at, { keys: encoded, values: encoded }))
    const given = arena.giveBack(100, 900)
    assert.ok(given > 0.9 * 800 * arena.pageBytes && given <= 800 * arena.pageBytes)
    each([0, 99, 900, 1023], (...at) => {
      const { keys, values } = arena.read(...at)
      for (const block of [keys, values]) {
        assert.deepEqual(block.planes, encoded.planes)
        assert.deepEqual(block.params, encoded.params)
      }
    })
    each([500], (...at) => assert.ok(arena.read(...at).keys.planes.every((b) => b === 0)))
  })
})
