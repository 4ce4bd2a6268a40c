import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PolicyState } from '../../contract/policy.ts'
import { DIMS, fullCache, rows, stateOf } from '../attention.fixture.ts'
import {
  allRows,
  blockProblem,
  channelGroup,
  everywhere,
  rowsStored,
  storeOldest,
  storePlan,
  wholeBlocks,
} from './blocks.ts'

const stateWith = (n: number, formats?: number[]): PolicyState =>
  stateOf(DIMS, fullCache(DIMS, n), n, formats ? { formats: () => Uint8Array.from(formats) } : {})

test('whole blocks, of 32 rows or of more', () => {
  assert.deepEqual(
    [-5, 0, 31, 32, 95].map((n) => wholeBlocks(n)),
    [0, 0, 0, 32, 64],
  )
  assert.deepEqual(
    [63, 64, 200].map((n) => wholeBlocks(n, 64)),
    [0, 64, 192],
  )
  assert.equal(blockProblem('buffer', 96), null)
  assert.match(blockProblem('buffer', 100)!, /'buffer' must be a multiple of 32.* got 100/)
})

test('groups of channels divide the head size', () => {
  const of = (headDim: number, most: number) => channelGroup({ ...DIMS, headDim }, most)
  assert.deepEqual([of(128, 32), of(128, 64), of(32, 64), of(96, 64), of(80, 32)], [32, 64, 32, 48, 20])
})

test('rows by how they are stored; without word of it all are as they were computed', () => {
  assert.deepEqual([...rowsStored(0, stateWith(4), 0, 0)], [0, 1, 2, 3])
  assert.deepEqual([...rowsStored(1, stateWith(4), 0, 0)], [])
  const state = stateWith(5, [1, 0, 2, 1, 0])
  assert.deepEqual(
    [0, 1, 2].map((format) => [...rowsStored(format, state, 1, 1)]),
    [[1, 4], [0, 3], [2]],
  )
})

test('all rows are one list where heads hold as many', () => {
  const all = allRows(stateWith(7))
  assert.equal(all.length, DIMS.layers)
  for (const heads of all) for (const list of heads) assert.equal(list, all[0]![0])
  assert.deepEqual([...all[0]![0]!], rows(0, 7))
  const ragged = stateOf(DIMS, [[Int32Array.of(3, 4), Int32Array.of(1)]], 2)
  assert.deepEqual(
    allRows({ ...ragged, model: { ...DIMS, layers: 1 } })
      .flat()
      .map((list) => [...list]),
    [[0, 1], [0]],
  )
})

test('a plan that moves nothing keeps all', () => {
  const none = { format: 0, rows: everywhere(DIMS, () => new Int32Array(0)) }
  const some = { format: 1, rows: everywhere(DIMS, () => Int32Array.of(2)) }
  assert.deepEqual(storePlan(stateWith(5), [none]), { kind: 'keep-all' })
  assert.deepEqual(storePlan(stateWith(5), [none], 7), { kind: 'keep-all', memory: 7 })
  const plan = storePlan(stateWith(5), [none, some])
  assert.deepEqual(plan.kind === 'keep' && plan.stored, [some])
})

test('the oldest of those that are as they were computed', () => {
  const plan = storeOldest(stateWith(6, [1, 1, 0, 0, 0, 0]), 1, (computed) => computed - 1)
  assert.ok(plan.kind === 'keep', plan.kind)
  for (const list of plan.stored![0]!.rows.flat()) assert.deepEqual([...list], [2, 3, 4])
})
