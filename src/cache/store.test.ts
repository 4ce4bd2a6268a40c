/** The store against a plain one: random operations, and what is promised of single ones. */
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { cpuDevice } from '../ggml/device.ts'
import { backend, Random, runner } from '../ggml/fixture.test.ts'
import { toFloats } from '../ggml/numbers.ts'
import { liveNatives } from '../ggml/owned.ts'
import { canGiveBack } from '../ggml/posix.ts'
import { type ArenaFormat, PAGE_CELLS } from './arena.ts'
import { cellBytes, isCell, Rows, setCell } from './cells.fixture.ts'
import { checkStore } from './check.ts'
import type { BlockRef, Column } from './column.ts'
import { requantize } from './rows.ts'
import type { KvSequence } from './sequence.ts'
import { KvStore } from './store.ts'

const DIMS = { layers: 2, headDim: 32, kvHeads: 2 } as const
const COLUMNS = DIMS.layers * DIMS.kvHeads
const F16: ArenaFormat = { keyType: 'f16', valueType: 'f16', valuesTransposed: true }
const MIXED: ArenaFormat = { keyType: 'q8_0', valueType: 'bf16', valuesTransposed: false }
const SMALL: ArenaFormat = { keyType: 'q8_0', valueType: 'q8_0', valuesTransposed: false }

after(() => {
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

const layerOf = (column: number) => Math.floor(column / DIMS.kvHeads)
const headOf = (column: number) => column % DIMS.kvHeads

// the model --------------------------------------------------------------------------------------------------------------

/** A row that should be there: which one, and whether its bytes are exact or went through another type. */
interface Row {
  readonly id: number
  readonly exact: boolean
}

/** What a sequence should hold, by layer and head: rows by position. */
interface Twin {
  readonly s: KvSequence
  readonly rows: Map<number, Row>[]
  /** Rows of the last append, if nothing has touched the sequence since. */
  appended: number
  next: number
}

interface Stored {
  readonly page: BlockRef
  readonly ids: readonly number[]
}

/** A sequence that was swapped out: its pages' bytes. */
interface Swapped {
  readonly pages: readonly Uint8Array[]
  readonly arena: number
  readonly ids: readonly number[]
}

/** q8_0 rounds numbers to 1/127 of the largest of 32, and may do so twice; rows here are below 5. */
const ROUNDING = 0.05

/** Everything that an operation which throws must leave as it was. */
function fingerprint(store: KvStore): string {
  const out: unknown[] = []
  for (const s of store.sequences.values())
    out.push(s.id, s.arena, s.layout, s.extent?.from, ...s.columns.map((c) => [c.end, c.rows, pagesOf(c), hash(c)]))
  for (const p of store.pools) {
    out.push(p.freePages, p.usedBlocks)
    for (let i = 0; i < p.pages; i++) out.push(p.pageHolders(i), p.blockHolders(i)?.join(), p.claims(i))
  }
  return JSON.stringify(out)
}

function pagesOf(c: Column): string {
  let out = ''
  for (const b of c.blocks) out += `${b.arena}:${b.page} `
  return out
}

function hash(c: Column): number {
  let h = 17
  for (const p of c.positions) h = (Math.imul(h, 31) + p) | 0
  return h
}

class Twins {
  readonly store: KvStore
  readonly random: Random
  readonly rows: Rows
  twins: Twin[] = []
  readonly external: BlockRef[] = []
  readonly stored: Stored[] = []
  readonly swapped: Swapped[] = []
  /** How often each operation did something, and how often it found no room. */
  readonly counts: Record<string, number> = {}
  #nextId = 1

  constructor(arenas: (ArenaFormat & { pages: number })[], seed: number) {
    this.store = new KvStore({ ...DIMS, arenas }, cpuDevice())
    this.random = new Random(seed)
    this.rows = new Rows(DIMS.headDim, () => Math.max(-4, Math.min(4, this.random.normal())))
  }

  /** Runs it unless there is no room; then nothing may have changed. */
  try(what: string, act: () => void): boolean {
    const before = fingerprint(this.store)
    try {
      act()
    } catch (error) {
      if (!isCode('KV_BUDGET')(error)) throw error
      assert.equal(fingerprint(this.store), before, `${what} found no room and changed something`)
      this.count(`${what}, no room`)
      return false
    }
    this.count(what)
    return true
  }

  count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }

  twin(layout?: KvSequence['layout']): Twin | null {
    const of = layout ? this.twins.filter((t) => t.s.layout === layout) : this.twins
    return of.length ? this.random.pick(of) : null
  }

  /** Index among the sequence's columns, and the layers and heads that it is for. */
  column(t: Twin): { index: number; maps: number[] } {
    if (t.s.layout === 'uniform') return { index: 0, maps: [...Array(COLUMNS).keys()] }
    const index = this.random.int(0, COLUMNS - 1)
    return { index, maps: [index] }
  }

  /** As the executor would: bytes of a row into the cell that a column has for it. */
  write(s: KvSequence, column: number, cell: number, id: number): void {
    const c = s.column(layerOf(column), headOf(column), DIMS.kvHeads)
    const arena = this.store.rowArena(c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena)
    for (const what of ['keys', 'values'] as const) {
      const index = this.rows.index(id, what, layerOf(column), headOf(column))
      const type = what === 'keys' ? arena.shape.keyType : arena.shape.valueType
      setCell(arena, what, layerOf(column), headOf(column), c.physical(cell), this.rows.bytes(index, type))
    }
  }

  compare(t: Twin, columns: Iterable<number> = Array(COLUMNS).keys()): void {
    for (const column of columns) {
      const c = t.s.column(layerOf(column), headOf(column), DIMS.kvHeads)
      const want = t.rows[column]!
      assert.equal(c.rows, want.size, `sequence ${t.s.id}, column ${column}: rows`)
      const { positions } = c
      for (const cell of c.usedCells()) {
        const row = want.get(positions[cell]!)
        if (!row) assert.fail(`sequence ${t.s.id}, column ${column}: position ${positions[cell]} in cell ${cell}`)
        this.#compareRow(t, column, c, cell, row)
      }
    }
  }

  #compareRow(t: Twin, column: number, c: Column, cell: number, row: Row): void {
    const arena = this.store.rowArena(c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena)
    for (const what of ['keys', 'values'] as const) {
      const type = what === 'keys' ? arena.shape.keyType : arena.shape.valueType
      const index = this.rows.index(row.id, what, layerOf(column), headOf(column))
      const physical = c.physical(cell)
      let same = true
      if (row.exact) same = isCell(arena, what, layerOf(column), headOf(column), physical, this.rows.bytes(index, type))
      else {
        const got = cellBytes(arena, what, layerOf(column), headOf(column), physical)
        const numbers = toFloats(type, got, DIMS.headDim)
        const want = this.rows.floats(index)
        for (let i = 0; i < want.length; i++) same &&= Math.abs(numbers[i]! - want[i]!) < ROUNDING
      }
      if (!same)
        assert.fail(`sequence ${t.s.id}, column ${column}, cell ${cell}: ${what} of position ${c.positions[cell]}`)
    }
  }

  check(): void {
    checkStore(this.store, this.external)
  }

  // operations -------------------------------------------------------------------------------------------------------------

  create(): void {
    if (this.twins.length > 5) return
    const s = this.store.create(this.random.pick([0, 10, 64, 200]), this.random.int(0, this.store.arenas.length - 1))
    this.twins.push({ s, rows: Array.from({ length: COLUMNS }, () => new Map()), appended: 0, next: 0 })
    this.count('create')
  }

  fork(): void {
    const from = this.twin()
    if (!from || this.twins.length > 5) return
    const s = this.store.fork(from.s, this.random.pick([0, 50, 200]))
    for (const c of s.columns) assert.equal(c.blocks.length, Math.ceil(c.end / PAGE_CELLS)) // room is not shared
    this.twins.push({ s, rows: from.rows.map((m) => new Map(m)), appended: from.appended, next: from.next })
    this.count('fork')
  }

  free(t = this.twin()): void {
    if (!t) return
    this.store.free(t.s)
    this.twins = this.twins.filter((u) => u !== t)
    this.count('free')
  }

  append(): void {
    const t = this.twin()
    if (!t) return
    const n = this.random.pick([1, 1, 1, 2, 7, 31, 32, 33, 60, 150])
    const positions = Array.from({ length: n }, (_, i) => t.next + i)
    const needed = t.s.layout === 'uniform' ? this.store.pagesNeeded(t.s, n) : null
    const free = this.store.pools[t.s.arena]!.freePages
    const done = this.try('append', () => this.store.append(t.s, positions))
    if (needed !== null) {
      // May be one too many, where a sequence holds a page twice.
      assert.ok(done || needed > free, `${needed} pages needed, ${free} free`)
      if (done) assert.ok(free - this.store.pools[t.s.arena]!.freePages <= needed)
    }
    if (!done) return
    for (const [column, rows] of t.rows.entries()) {
      const c = t.s.column(layerOf(column), headOf(column), DIMS.kvHeads)
      for (const [i, position] of positions.entries()) {
        const id = this.#nextId + i
        const cell = c.end - n + i
        assert.equal(c.positions[cell], position)
        assert.equal(c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena, t.s.arena)
        this.write(t.s, column, cell, id)
        rows.set(position, { id, exact: true })
      }
    }
    this.#nextId += n
    t.next += n
    t.appended = n
  }

  reserve(): void {
    const t = this.twin()
    if (!t) return
    this.try('reserve', () => this.store.reserve(t.s, this.random.int(0, 100)))
  }

  trim(): void {
    const t = this.twin()
    if (!t) return
    this.store.trim(t.s)
    this.count('trim')
  }

  takeBack(): void {
    const t = this.twin()
    if (!t?.appended) return
    const n = this.random.int(1, t.appended)
    this.store.takeBack(t.s, n)
    t.next -= n
    t.appended -= n
    for (const rows of t.rows) for (let i = 0; i < n; i++) rows.delete(t.next + i)
    this.count('takeBack')
  }

  truncate(): void {
    const t = this.twin('uniform')
    if (!t) return
    const c = t.s.columns[0]!
    const end = this.random.int(0, c.end)
    const gone = c.usedCells().filter((cell) => cell >= end)
    const positions = gone.map((cell) => c.positions[cell]!)
    this.store.truncate(t.s, end)
    for (const rows of t.rows) for (const p of positions) rows.delete(p)
    t.appended = 0
    this.count('truncate')
  }

  drop(): void {
    const t = this.twin()
    if (!t) return
    const { index, maps } = this.column(t)
    const c = t.s.columns[index]!
    const share = this.random.pick([0.05, 0.5, 0.95])
    const cells = c.usedCells().filter(() => this.random.chance(share))
    if (!cells.length) return
    const positions = cells.map((cell) => c.positions[cell]!)
    this.store.drop(t.s, index, cells)
    for (const m of maps) for (const p of positions) t.rows[m]!.delete(p)
    t.appended = 0
    this.count('drop')
  }

  compact(): void {
    const t = this.twin()
    if (!t) return
    const { index } = this.column(t)
    const c = t.s.columns[index]!
    if (!this.try('compact', () => this.store.compact(t.s, index))) return
    t.appended = 0
    const arenas = new Set(c.blocks.map((b) => b.arena))
    if (arenas.size === 1 && arenas.has(t.s.arena)) assert.equal(c.end, c.rows)
    for (const a of arenas) {
      let rows = 0
      const own = [...c.blocks.keys()].filter((i) => c.blocks[i]!.arena === a)
      for (const i of own)
        for (const p of c.positions.subarray(i * PAGE_CELLS, (i + 1) * PAGE_CELLS)) if (p >= 0) rows++
      assert.equal(own.length, Math.ceil(rows / PAGE_CELLS), 'blocks after compaction')
    }
  }

  makeRagged(): void {
    const t = this.twin('uniform')
    if (!t) return
    this.store.makeRagged(t.s)
    this.count('makeRagged')
  }

  overwrite(): void {
    const t = this.twin()
    if (!t) return
    const { index, maps } = this.column(t)
    const c = t.s.columns[index]!
    const cells = c.usedCells().filter(() => this.random.chance(0.1))
    const done = this.try('own', () =>
      this.random.chance(0.5) && t.s.layout === 'uniform'
        ? this.store.own(t.s, new Set(cells).values())
        : this.store.own(t.s, cells, index),
    )
    if (!done) return
    for (const cell of cells) {
      const id = this.#nextId++
      for (const m of maps) {
        this.write(t.s, m, cell, id)
        t.rows[m]!.set(c.positions[cell]!, { id, exact: true })
      }
    }
  }

  /** A stored prefix: a page with rows of its own, held by nobody but the index. */
  storePage(): void {
    if (this.stored.length > 2) return
    const arena = this.random.int(0, this.store.arenas.length - 1)
    const page = this.store.takePage(arena, null)
    if (!page) {
      this.count('takePage, no room')
      return
    }
    this.external.push(page)
    const ids = Array.from({ length: PAGE_CELLS }, () => this.#nextId++)
    const holder = this.store.rowArena(arena)
    for (let column = 0; column < COLUMNS; column++)
      for (const [i, id] of ids.entries())
        for (const what of ['keys', 'values'] as const) {
          const type = what === 'keys' ? holder.shape.keyType : holder.shape.valueType
          const bytes = this.rows.bytes(this.rows.index(id, what, layerOf(column), headOf(column)), type)
          setCell(holder, what, layerOf(column), headOf(column), page.page * PAGE_CELLS + i, bytes)
        }
    this.stored.push({ page, ids })
    this.count('takePage')
  }

  /** A full page of a sequence is held for an index, too. */
  holdPage(): void {
    const t = this.twin('uniform')
    const page = t?.s.columns[0]?.blocks[0]
    if (!page || this.external.length > 6) return
    this.store.holdPage(page)
    this.external.push(page)
    assert.ok(this.store.isPageShared(page))
    this.count('holdPage')
  }

  releasePage(): void {
    if (!this.external.length) return
    const i = this.random.int(0, this.external.length - 1)
    const [page] = this.external.splice(i, 1)
    this.store.releasePage(page!)
    const at = this.stored.findIndex((s) => s.page === page)
    if (at >= 0) this.stored.splice(at, 1)
    this.count('releasePage')
  }

  adopt(): void {
    const t = this.twin('uniform')
    if (!t || !this.stored.length) return
    const { page, ids } = this.random.pick(this.stored)
    const c = t.s.columns[0]!
    if (c.end !== c.cells) {
      assert.throws(() => this.store.adopt(t.s, [page], t.next), isCode('INVALID_ARGUMENT'))
      return
    }
    this.store.holdPage(page)
    this.store.adopt(t.s, [page], t.next)
    for (const rows of t.rows) for (const [i, id] of ids.entries()) rows.set(t.next + i, { id, exact: true })
    t.next += PAGE_CELLS
    t.appended = 0
    this.count('adopt')
  }

  /** Pages to the host, and the sequence is freed; only of exact, full pages, as those of a request that is preempted. */
  swapOut(): void {
    const t = this.twin('uniform')
    if (!t || this.swapped.length > 2) return
    const c = t.s.columns[0]!
    const full = Math.floor(c.end / PAGE_CELLS)
    const arena = c.blocks[0]?.arena ?? 0
    const ids: number[] = []
    for (let cell = 0; cell < full * PAGE_CELLS; cell++) {
      const row = t.rows[0]!.get(c.positions[cell]!)
      // One id for all columns, no holes, one arena: others are rebuilt, not swapped.
      if (!row?.exact || t.rows.some((m) => m.get(c.positions[cell]!)?.id !== row.id)) return
      if (c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena !== arena) return
      ids.push(row.id)
    }
    const pages = c.blocks.slice(0, full).map((b) => this.store.rowArena(arena).readPage(b.page))
    this.free(t)
    if (full) this.swapped.push({ pages, arena, ids })
    this.count('swapOut')
  }

  swapIn(): void {
    const out = this.swapped.shift()
    if (!out) return
    const s = this.store.create(0, out.arena)
    const t: Twin = { s, rows: Array.from({ length: COLUMNS }, () => new Map()), appended: 0, next: 0 }
    this.twins.push(t)
    for (const bytes of out.pages) {
      const after = s.columns[0]!.blocks.at(-1)?.page ?? null
      const page = this.store.takePage(out.arena, after)
      if (!page) {
        this.count('swapIn, no room')
        break
      }
      // As it comes from a file: anywhere in a larger buffer.
      const odd = new Uint8Array(bytes.length + 1)
      odd.set(bytes, 1)
      this.store.rowArena(out.arena).writePage(page.page, odd.subarray(1))
      this.store.adopt(s, [page], t.next)
      for (const rows of t.rows)
        for (let i = 0; i < PAGE_CELLS; i++) rows.set(t.next + i, { id: out.ids[t.next + i]!, exact: true })
      t.next += PAGE_CELLS
    }
    this.count('swapIn')
  }

  giveBack(): void {
    if (this.store.giveBack(0) > 0) this.count('giveBack')
  }

  /** Later rows go to another arena. */
  switchArena(): void {
    const t = this.twin()
    if (!t || this.store.arenas.length < 2) return
    t.s.arena = 1 - t.s.arena
    this.count('switchArena')
  }

  requantize(): void {
    const t = this.twin()
    if (!t || this.store.arenas.length < 2) return
    const { index, maps } = this.column(t)
    const c = t.s.columns[index]!
    const arena = this.random.int(0, 1)
    const share = this.random.pick([0.1, 0.5, 1])
    const cells = c.usedCells().filter(() => this.random.chance(share))
    const moved = cells.filter((cell) => c.blocks[Math.floor(cell / PAGE_CELLS)]!.arena !== arena)
    const positions = moved.map((cell) => c.positions[cell]!)
    if (!this.try('requantize', () => requantize(runner, this.store, t.s, index, cells, arena))) return
    for (const m of maps) for (const p of positions) t.rows[m]!.set(p, { id: t.rows[m]!.get(p)!.id, exact: false })
    if (moved.length) t.appended = 0
  }
}

type Operation = {
  [K in keyof Twins]: Twins[K] extends () => void ? K : never
}[keyof Twins]

/** How often each is chosen, relative to the others. */
const OPERATIONS: readonly (readonly [Operation, number])[] = [
  ['create', 6],
  ['fork', 6],
  ['free', 4],
  ['append', 30],
  ['reserve', 5],
  ['trim', 4],
  ['takeBack', 6],
  ['truncate', 4],
  ['drop', 10],
  ['compact', 8],
  ['makeRagged', 3],
  ['overwrite', 6],
  ['storePage', 4],
  ['holdPage', 3],
  ['releasePage', 5],
  ['adopt', 6],
  ['swapOut', 3],
  ['swapIn', 3],
  ['giveBack', 3],
  ['switchArena', 1],
  ['requantize', 2],
]
const BAG = OPERATIONS.flatMap(([name, n]) => Array.from({ length: n }, () => name))

/** Twins, once in a while from the start, so that a failing seed is short to run again. */
const ROUND = 400
const BASE = Number(process.env['KVASIR_SEED'] ?? 1)
const OPERATIONS_EACH = Number(process.env['KVASIR_OPERATIONS'] ?? 40_000)

describe('random operations', () => {
  for (const [name, arenas] of [
    ['f16, transposed values', [{ ...F16, pages: 16 }]],
    ['q8_0 keys, bf16 values', [{ ...MIXED, pages: 24 }]],
    [
      'two arenas',
      [
        { ...F16, pages: 16 },
        { ...SMALL, pages: 8 },
      ],
    ],
  ] as const)
    it(`leave what a plain store has: ${name}`, () => {
      const totals: Record<string, number> = {}
      for (let round = 0; round < OPERATIONS_EACH / ROUND; round++) {
        const seed = BASE + 1000 * round
        const twins = new Twins([...arenas], seed)
        const trace: string[] = []
        try {
          for (let i = 0; i < ROUND; i++) {
            const operation = twins.random.pick(BAG)
            trace.push(operation)
            twins[operation]()
            twins.check()
            // One head's rows of one sequence each time, everything every so often.
            const t = twins.twin()
            if (t) twins.compare(t, [twins.random.int(0, COLUMNS - 1)])
            if (i % 100 === 99) for (const each of twins.twins) twins.compare(each)
          }
          for (const t of [...twins.twins]) twins.free(t)
          while (twins.external.length) twins.releasePage()
          twins.check()
          for (const pool of twins.store.pools) assert.deepEqual([pool.freePages, pool.usedBlocks], [pool.pages, 0])
        } catch (error) {
          throw new Error(
            `KVASIR_SEED=${seed} KVASIR_OPERATIONS=${ROUND}, operation ${trace.length} (${trace.slice(-8).join(', ')}): ${error}`,
            { cause: error },
          )
        } finally {
          twins.store[Symbol.dispose]()
        }
        for (const [what, n] of Object.entries(twins.counts)) totals[what] = (totals[what] ?? 0) + n
      }
      // A walk that never gets there checks nothing.
      if (process.env['KVASIR_COUNTS']) console.log(name, totals)
      const must = [
        'append, no room',
        'own, no room',
        'compact, no room',
        'takePage, no room',
        'swapIn',
        'adopt',
        'fork',
      ]
      if (canGiveBack) must.push('giveBack')
      if (arenas.length > 1) must.push('requantize', 'requantize, no room', 'switchArena')
      if (OPERATIONS_EACH >= 30_000) for (const what of must) assert.ok(totals[what]! >= 10, `${what}: ${totals[what]}`)
    })
})

describe('a store', () => {
  const store16 = (pages = 16) => new KvStore({ ...DIMS, arenas: [{ ...F16, pages }] }, cpuDevice())
  const upTo = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i)

  it('frees exactly the blocks that dropped rows of one head took', () => {
    using store = store16()
    const s = store.create(256)
    store.append(s, upTo(200))
    store.makeRagged(s)
    const before = store.usedBytes
    store.drop(
      s,
      1,
      upTo(100).map((i) => 2 * i),
    )
    assert.equal(store.usedBytes, before)
    store.compact(s, 1)
    assert.equal(before - store.usedBytes, (7 - 4) * store.home.blockBytes) // 200 rows: 7 blocks; 100: 4
    checkStore(store, [])
  })

  it('copies one page when a fork goes on in a page that is filled in part', () => {
    using store = store16()
    const s = store.create(0)
    store.append(s, upTo(80))
    const f = store.fork(s, 0)
    const free = store.pools[0]!.freePages
    assert.equal(store.pagesNeeded(f, 1), 1)
    store.append(f, [80])
    assert.equal(store.pools[0]!.freePages, free - 1)
    const [a, b] = [s.columns[0]!.blocks, f.columns[0]!.blocks]
    assert.deepEqual([a[0], a[1], a.length], [b[0], b[1], b.length])
    assert.notDeepEqual(a[2], b[2])
    // The other now has the page for itself.
    assert.equal(store.pagesNeeded(s, 1), 0)
    store.append(s, [80])
    assert.equal(store.pools[0]!.freePages, free - 1)
    store.free(s)
    store.free(f)
    assert.equal(store.pools[0]!.freePages, store.pools[0]!.pages)
  })

  it('does not write into pages that a fork still has behind the end of a truncated sequence', () => {
    using store = store16()
    const s = store.create(0)
    store.append(s, upTo(96))
    const f = store.fork(s, 0)
    store.truncate(s, 10)
    assert.equal(store.pagesNeeded(s, 86), 3)
    store.append(s, upTo(86, 10))
    for (const i of [0, 1, 2]) assert.notDeepEqual(s.columns[0]!.blocks[i], f.columns[0]!.blocks[i])
    checkStore(store, [])
  })

  it('keeps sequences that grow in turns in one run each', () => {
    using store = store16(32)
    const all = [store.create(256), store.create(256), store.create(256)]
    for (let i = 0; i < 256; i++) for (const s of all) store.append(s, [i])
    for (const s of all) assert.equal(s.columns[0]!.runs.length, 1)
    // A ragged sequence stays out of the room of others, too.
    const ragged = store.create(0)
    store.free(all[0]!)
    const fresh = store.create(128)
    store.append(ragged, upTo(10))
    store.makeRagged(ragged)
    store.append(ragged, upTo(60, 10))
    store.append(fresh, upTo(128))
    assert.equal(fresh.columns[0]!.runs.length, 1)
    checkStore(store, [])
  })

  it('gives an extent back in the arena in which it was opened', () => {
    using store = new KvStore(
      {
        ...DIMS,
        arenas: [
          { ...F16, pages: 8 },
          { ...SMALL, pages: 8 },
        ],
      },
      cpuDevice(),
    )
    const s = store.create(100, 1)
    store.append(s, upTo(40))
    assert.deepEqual(s.columns[0]!.runs, [{ arena: 1, from: 0, to: 64 }])
    s.arena = 0
    store.append(s, upTo(40, 40))
    // The rest of the second page stays empty: rows of one append lie in one arena.
    assert.deepEqual([s.columns[0]!.end, s.columns[0]!.rows], [104, 80])
    checkStore(store, [])
    store.free(s)
    checkStore(store, [])
  })

  it('leaves all columns as they were when one of several finds no room', () => {
    using store = store16(8)
    const s = store.create(0)
    store.append(s, upTo(70))
    store.makeRagged(s)
    const f = store.fork(s, 0)
    const filler = store.create(0)
    store.append(filler, upTo(5 * 32 - 10))
    const before = fingerprint(store)
    assert.throws(() => store.append(f, upTo(70, 70)), isCode('KV_BUDGET'))
    assert.throws(() => store.own(f, upTo(70)), isCode('KV_BUDGET'))
    assert.equal(fingerprint(store), before)
    checkStore(store, [])
  })

  it('refuses what it cannot do', () => {
    using store = store16()
    const s = store.create(0)
    store.append(s, upTo(40))
    for (const wrong of [
      () => store.create(10, 1),
      () => store.append(s, [-1]),
      () => store.truncate(s, -1),
      () => store.takeBack(s, 41),
      () => store.drop(s, 0, [1, 40]),
      () => store.drop(s, 1, []),
      () => store.own(s, [40]),
      () => store.adopt(s, [], 0),
      () => store.sequence(99 as typeof s.id),
    ])
      assert.throws(wrong, isCode('INVALID_ARGUMENT'), `${wrong}`)
    assert.equal(s.rows, 40)
    store.free(s)
    for (const late of [
      () => store.free(s),
      () => store.append(s, [1]),
      () => store.fork(s, 0),
      () => store.makeRagged(s),
    ])
      assert.throws(late, isCode('DISPOSED'), `${late}`)
    assert.throws(() => store16(0), isCode('INVALID_ARGUMENT'))
  })

  it('is checked: each kind of difference is found and named', () => {
    using store = store16()
    const s = store.create(64)
    store.append(s, upTo(40))
    const [first] = s.columns[0]!.blocks
    assert.throws(() => checkStore(store, [first!]), /arena 0, page 0: 1 holders counted, 2 hold it/)
    store.holdPage(first!)
    assert.throws(() => checkStore(store, []), /arena 0, page 0: 2 holders counted, 1 hold it/)
    store.releasePage(first!)
    assert.throws(() => checkStore(store, [{ arena: 3, page: first!.page }]), /an external hold names arena 3 of 1/)
    const { extent } = s
    s.extent = null
    assert.throws(() => checkStore(store, []), /page 0: in 1 extents counted, 0 cover it/)
    s.extent = extent
    s.columns[0]!.positions[50] = 7
    assert.throws(() => checkStore(store, []), /column 0: cell 50 holds position 7, behind end 40/)
    s.columns[0]!.positions[50] = -1
    s.columns[0]!.positions[5] = -1
    assert.throws(() => checkStore(store, []), /column 0: 40 rows, its cells hold 39/)
    s.columns[0]!.positions[5] = 5
    store.makeRagged(s)
    store.pools[0]!.holdBlock(first!.page, 2)
    assert.throws(() => checkStore(store, []), /page 0, column 2: 2 holders of the block counted, 1 hold it/)
    store.pools[0]!.releaseBlock(first!.page, 2)
    checkStore(store, [])
  })
})
