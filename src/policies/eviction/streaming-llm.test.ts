import assert from 'node:assert/strict'
import { test } from 'node:test'
import { rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill } from '../run.fixture.ts'

test('keeps the sinks and the newest rows, after the prompt and after each row of the answer', () => {
  for (const kept of keptBy('streaming-llm', { n: 40, budget: 10 }).flat())
    assert.deepEqual(kept, [0, 1, 2, 3, ...rows(34, 40)])
  let { cache } = prefill('streaming-llm?sinks=2', { n: 8, budget: 10 })
  const lengths: number[] = []
  for (let step = 1; step <= 10; step++) {
    cache = decodeStep(choosePolicy('streaming-llm?sinks=2'), cache, { budget: 10 })
    lengths.push(cache[0]![0]!.length)
  }
  assert.deepEqual(lengths, [9, 10, ...new Array(8).fill(10)])
  assert.deepEqual([...cache[0]![0]!], [0, 1, ...rows(10, 18)])
})

test('without sinks it is the window', () => {
  const setting = { n: 40, budget: 10 }
  assert.deepEqual(keptBy('streaming-llm?sinks=0', setting), keptBy('window', setting))
})

test('the newest row stays even if the sinks would take all of the budget', () => {
  assert.deepEqual(keptBy('streaming-llm?sinks=100', { n: 40, budget: 3 })[0]![0], [0, 1, 39])
})
