/** Counting alone; what sequences make of it is in store.test.ts. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { PageId } from '../contract/units.ts'
import { PagePool } from './pages.ts'

const page = (n: number) => n as PageId

describe('a page pool', () => {
  it('lets a page go through all its states and back', () => {
    const pool = new PagePool(4, 3)
    const p = pool.takePage(null, null)!
    pool.holdPage(p)
    assert.deepEqual([pool.freePages, pool.usedBlocks, pool.isPageShared(p)], [3, 3, true])
    pool.splitPage(p)
    assert.deepEqual([pool.holders(p, 1), pool.usedBlocks, pool.isPageShared(p)], [2, 3, true])
    pool.releaseBlock(p, 1)
    assert.deepEqual([pool.usedBlocks, pool.isFragmented(p), pool.isBlockShared(p, 1)], [3, false, false])
    pool.releasePage(p)
    assert.deepEqual([pool.usedBlocks, pool.isFragmented(p), pool.freePages], [2, true, 3])
    // Pieces are used before whole pages are taken apart.
    assert.equal(pool.takeBlock(1, null), p)
    assert.deepEqual([pool.usedBlocks, pool.isFragmented(p)], [3, false])
    for (const c of [0, 1, 2]) pool.releaseBlock(p, c)
    assert.deepEqual([pool.usedBlocks, pool.freePages, pool.blockHolders(p)], [0, 4, null])
    assert.throws(() => pool.releaseBlock(p, 0), /not held/)
    assert.throws(() => pool.releasePage(p), /not held/)
  })

  it('knows since when a page is held as it is', () => {
    let now = 1000
    const pool = new PagePool(4, 3, () => now)
    const p = pool.takePage(null, null)!
    now += 5
    assert.deepEqual([pool.age(p), pool.age(p + 1)], [5, 0])
    pool.holdPage(p)
    assert.equal(pool.age(p), 0)
    now += 7
    pool.releasePage(p)
    assert.equal(pool.age(p), 7)
    pool.splitPage(p)
    pool.releaseBlock(p, 0)
    assert.equal(pool.age(p), 7)
    assert.equal(pool.takeBlock(0, null), p)
    assert.deepEqual([pool.age(p), pool.isFree(p)], [0, false])
    now += 1
    for (const c of [0, 1, 2]) pool.releaseBlock(p, c)
    assert.deepEqual([pool.age(p), pool.isFree(p)], [0, true])
  })

  it('says which free pages were written to and are idle, once', () => {
    let now = 0
    const pool = new PagePool(8, 2, () => now)
    assert.deepEqual(pool.takeIdle(0), [], 'none was ever used')
    for (const p of [0, 1, 2, 5]) pool.holdPage(page(p))
    pool.splitPage(page(5))
    for (const p of [1, 2]) pool.releasePage(page(p))
    now = 10
    pool.releaseBlock(page(5), 0)
    assert.deepEqual(pool.takeIdle(11), [])
    // Pages that were never used close the gap to page 5, of which a block is held.
    assert.deepEqual(pool.takeIdle(10), [{ from: 1, to: 5 }])
    assert.deepEqual(pool.takeIdle(10), [])
    pool.releaseBlock(page(5), 1)
    now = 20
    assert.deepEqual(pool.takeIdle(10), [{ from: 1, to: 8 }])
    // One that was used again counts again, and a busy one beside it does not hide it.
    pool.releasePage(pool.takePage(2, null)!)
    now = 25
    pool.releasePage(pool.takePage(5, null)!)
    now = 30
    assert.deepEqual(pool.takeIdle(10), [{ from: 1, to: 6 }])
  })

  it('counts what is lent as idle: nobody writes there', () => {
    let now = 0
    const pool = new PagePool(4, 1, () => now)
    pool.releasePage(pool.takePage(2, null)!)
    assert.deepEqual([pool.lendPage(), pool.lendPage(), pool.freePages], [3, 2, 2])
    now = 5
    assert.deepEqual(pool.takeIdle(5), [{ from: 0, to: 4 }], 'page 3 was used before it was lent')
    pool.takeBackPage(page(2))
    now = 10
    assert.deepEqual(pool.takeIdle(0), [], 'page 2 was only lent')
    assert.equal(pool.freePages, 3)
    assert.equal(pool.takePage(1, null), 2)
    pool.releasePage(page(2))
    assert.deepEqual(pool.takeIdle(0), [{ from: 0, to: 4 }])
  })

  it('opens extents in the smallest gap that is large enough, else in the largest', () => {
    const pool = new PagePool(16, 1)
    for (const p of [3, 9]) pool.holdPage(page(p)) // gaps: [0, 3) [4, 9) [10, 16)
    assert.deepEqual(pool.openExtent(4), { from: 4, to: 8 })
    assert.deepEqual(pool.openExtent(3), { from: 0, to: 3 })
    assert.deepEqual(pool.openExtent(9), { from: 10, to: 16 })
    assert.deepEqual(pool.openExtent(9), { from: 8, to: 9 })
    assert.equal(pool.openExtent(1), null)
  })

  it('keeps out of the extents of others while there is room elsewhere', () => {
    const pool = new PagePool(8, 2)
    const first = pool.openExtent(3)!
    const second = pool.openExtent(3)!
    assert.equal(pool.takePage(null, null), 6)
    assert.equal(pool.takePage(null, second), 3)
    assert.equal(pool.takePage(3, second), 4)
    assert.equal(pool.takePage(null, first), 0)
    assert.equal(pool.takeBlock(0, 0), 7)
    // Nothing else is left.
    assert.equal(pool.takeBlock(0, 7), 1)
    assert.equal(pool.takePage(null, null), 2)
    assert.equal(pool.takePage(null, null), 5)
    assert.equal(pool.takePage(null, second), null)
    assert.equal(pool.takeBlock(0, null), null)
    assert.equal(pool.takeBlock(1, null), 7)
    pool.closeExtent(first)
    assert.deepEqual([pool.claims(0), pool.claims(3)], [0, 1])
  })
})
