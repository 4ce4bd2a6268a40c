import assert from 'node:assert/strict'
import { test } from 'node:test'
import { layerGroups, rowsByLayer, someLayerGroups, stagesOf } from './layer-groups.ts'

/** Of Llama-2-7B, summed over its 32 heads; from stage_division.py. */
const LLAMA_2_7B = [
  71.09, 70.85, 67.41, 69.05, 69.22, 69.52, 71.96, 73.15, 72.4, 73.33, 73.35, 73.32, 73.69, 73.94, 74.62, 73.31, 73.6,
  73.91, 73.91, 74.63, 74.46, 74.77, 74.94, 75.72, 74.84, 77.0, 75.6, 76.24, 76.62, 75.76, 75.28, 73.45,
]

test("Llama-2-7B's layers fall into the authors' groups", () => {
  assert.deepEqual(layerGroups(LLAMA_2_7B, -1), [0, 2, 15, 26, 31])
})

test('a curve that rises is one group', () => assert.deepEqual(layerGroups([1, 2, 3], -1), [0]))

test('eps is halved where nothing falls by it, until there are three groups', () => {
  assert.deepEqual(someLayerGroups(LLAMA_2_7B, -1), layerGroups(LLAMA_2_7B, -1))
  // 0.4 and 0.2 are passed by a quarter and an eighth: one group more at each.
  const curve = [10, 9.6, 9.7, 9.5, 9.6, 9.54]
  assert.deepEqual(someLayerGroups(curve, -1), [0, 1, 3])
  // Two is enough, if it comes with the first eps; behind it the search is for three.
  assert.deepEqual(someLayerGroups(curve, -0.3), [0, 1])
  assert.deepEqual(someLayerGroups([10, 9.6, 9.7], -1), [0, 1])
  assert.deepEqual(someLayerGroups([10, 9.97, 9.95], -1), [0], 'falls of less than 0.05 are noise')
})

test('each group computes fewer rows, on a line from the context to the least', () => {
  // The authors' numbers: 1536 of 4096, five groups, so 640 rows a step.
  const groups = [0, 2, 15, 26, 31]
  const stages = stagesOf(groups, 4096, 1536, 4096)
  assert.deepEqual(stages, [
    { first: 0, rows: 4096 },
    { first: 2, rows: 3456 },
    { first: 15, rows: 2816 },
    { first: 26, rows: 2176 },
    { first: 31, rows: 1536 },
  ])
  assert.deepEqual(rowsByLayer(stages, 32).slice(14, 17), [3456, 2816, 2816])
})

test('groups that lose nothing belong to those before them', () => {
  const groups = [0, 2, 15, 26, 31]
  assert.deepEqual(stagesOf(groups, 2500, 1536, 4096), [
    { first: 0, rows: 2500 },
    { first: 26, rows: 2176 },
    { first: 31, rows: 1536 },
  ])
  assert.deepEqual(stagesOf(groups, 1536, 1536, 4096), [{ first: 0, rows: 1536 }])
  assert.deepEqual(stagesOf([0], 9000, 1536, 4096), [{ first: 0, rows: 9000 }])
})
