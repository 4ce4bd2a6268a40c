import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvSequence } from '../cache/sequence.ts'
import type { ObservedLayer } from '../contract/observation.ts'
import type { SequenceId } from '../contract/units.ts'
import { joinWindow, windowItems, windowRows } from './window.ts'

const NEEDS = { rows: 3, statistics: ['sum'] } as const

describe('rows of a window', () => {
  it('are the last ones, as many as are asked for or as the share says', () => {
    assert.deepEqual([...windowRows(NEEDS, 10, 1)], [7, 8, 9])
    assert.deepEqual([...windowRows({ ...NEEDS, share: 0.5 }, 10, 1)], [5, 6, 7, 8, 9])
    assert.deepEqual([...windowRows({ ...NEEDS, share: 0.1 }, 10, 1)], [7, 8, 9])
    assert.deepEqual([...windowRows(NEEDS, 2, 1)], [0, 1])
  })

  it('and some by chance among those before: ascending, each once, the same for one seed', () => {
    const needs = { ...NEEDS, random: 0.2 }
    const rows = [...windowRows(needs, 100, 1)]
    assert.equal(rows.length, 23)
    assert.equal(new Set(rows).size, 23)
    assert.deepEqual(
      rows,
      rows.toSorted((a, b) => a - b),
    )
    assert.deepEqual(rows.slice(-3), [97, 98, 99])
    assert.deepEqual([...windowRows(needs, 100, 1)], rows)
    assert.notDeepEqual([...windowRows(needs, 100, 2)], rows)
    // All of them, where more are asked for than there are.
    assert.deepEqual([...windowRows({ ...NEEDS, random: 1 }, 5, 1)], [0, 1, 2, 3, 4])
  })
})

describe('a window in several items', () => {
  const sequence = new KvSequence(1 as SequenceId, 0)
  const items = (statistics: readonly ('sum' | 'variance')[], queries = false) =>
    windowItems(
      sequence,
      { rows: 5, statistics, queries },
      Int32Array.of(1, 3, 5, 6, 7),
      { from: 0, to: 2 },
      {
        positions: Int32Array.from({ length: 8 }, (_, i) => 10 * i),
        inputOf: (rows) => ({ kind: 'tokens', tokens: rows }),
        most: 2,
      },
    )

  it('has as many rows in each as may run at once; those that are compared with each other stay together', () => {
    assert.deepEqual(
      items(['sum']).map((item) => [...item.positions]),
      [[10, 30], [50, 60], [70]],
    )
    assert.equal(items(['variance']).length, 1)
    assert.deepEqual(items([], true)[0]!.outputs, { logits: [], hidden: false, queries: true })
  })

  it('is summed up, and its queries stand side by side', () => {
    const layer = (...sums: number[]): ObservedLayer => ({
      keys: [2],
      positions: [Int32Array.of(0, 1)],
      statistics: { sum: Float32Array.from(sums) },
    })
    const nothing = { logits: null, hidden: null, normed: null }
    const seen = joinWindow(items(['sum']), [
      { ...nothing, observed: [layer(1, 2), layer(3, 4)], queries: [Float32Array.of(1), Float32Array.of(2)] },
      { ...nothing, observed: [layer(10, 20), layer(30, 40)], queries: [Float32Array.of(3), Float32Array.of(4)] },
      { ...nothing, observed: [layer(100, 200), layer(300, 400)], queries: [Float32Array.of(5), Float32Array.of(6)] },
    ])
    assert.deepEqual([...seen.positions], [10, 30, 50, 60, 70])
    assert.deepEqual(
      seen.layers.map((l) => [...l.statistics.sum!]),
      [
        [111, 222],
        [333, 444],
      ],
    )
    assert.deepEqual(
      seen.queries!.map((q) => [...q]),
      [
        [1, 3, 5],
        [2, 4, 6],
      ],
    )
  })
})
