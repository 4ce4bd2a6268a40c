import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { PageId } from '../contract/units.ts'
import { checkColumn } from './check.ts'
import { Column } from './column.ts'

/** `end` rows in blocks of these pages, position = cell. */
function column(end: number, pages: readonly number[]): Column {
  const c = new Column()
  for (const p of pages) c.addBlock({ arena: 0, page: p as PageId })
  for (let i = 0; i < end; i++) c.push(i)
  return c
}

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

describe('a column', () => {
  it('reads consecutive pages of one arena as one run', () => {
    const c = column(100, [4, 5, 9, 10])
    c.addBlock({ arena: 1, page: 11 as PageId })
    assert.deepEqual(c.runs, [
      { arena: 0, from: 128, to: 192 },
      { arena: 0, from: 288, to: 352 },
      { arena: 1, from: 352, to: 384 },
    ])
    assert.equal(c.physical(70), 294)
    checkColumn('c', c)
  })

  it('gives blocks that hold nothing, but not those that rows can still go into', () => {
    const c = column(70, [0, 1, 2, 3])
    for (const cell of range(0, 32)) c.drop(cell)
    for (const cell of range(64, 70)) c.drop(cell)
    assert.deepEqual(
      c.takeEmpty().map((b) => b.page),
      [0],
    )
    assert.deepEqual([c.end, c.rows, c.cells], [38, 32, 96])
    assert.deepEqual(c.usedCells(), range(0, 32))
    assert.equal(c.positions[0], 32)
    assert.deepEqual(
      c.takeUnused().map((b) => b.page),
      [3],
    )
    checkColumn('c', c)
    // A block that is full of holes to its last cell takes no rows any more.
    const full = column(64, [0, 1, 2])
    for (const cell of range(32, 64)) full.drop(cell)
    assert.deepEqual(
      full.takeEmpty().map((b) => b.page),
      [1],
    )
    assert.equal(full.end, 32)
    checkColumn('full', full)
  })

  it('takes blocks of another arena in front of the one that grows', () => {
    const c = column(300, range(0, 10)) // 256 cells of positions are not enough: they grow
    const first = c.insertBlocks(Math.floor(c.end / 32), [{ arena: 1, page: 7 as PageId }])
    assert.deepEqual([first, c.end, c.rows], [288, 332, 300])
    assert.deepEqual([...c.positions.subarray(286, 290)], [286, 287, -1, -1])
    assert.deepEqual([...c.positions.subarray(319, 322)], [-1, 288, 289])
    assert.deepEqual(c.blocks[9], { arena: 1, page: 7 })
    assert.equal(c.push(300), 332)
    checkColumn('c', c)
    const full = column(32, [0])
    assert.equal(full.insertBlocks(1, [{ arena: 1, page: 7 as PageId }]), 32)
    assert.equal(full.end, 64)
    checkColumn('full', full)
  })

  it('puts blocks into another order, and gives those that are left out', () => {
    const c = column(96, [0, 1, 2])
    for (const cell of range(32, 64)) c.drop(cell)
    assert.deepEqual(
      c.arrange([2, 0], 64).map((b) => b.page),
      [1],
    )
    assert.deepEqual([c.positions[0], c.positions[32], c.end, c.rows], [64, 0, 64, 64])
    checkColumn('c', c)
  })

  it('is cloned as a whole', () => {
    const c = column(40, [0, 1])
    const d = c.clone()
    d.drop(3)
    d.push(40)
    assert.deepEqual([c.rows, c.end, d.rows, d.end], [40, 40, 40, 41])
    checkColumn('c', c)
    checkColumn('d', d)
  })
})
