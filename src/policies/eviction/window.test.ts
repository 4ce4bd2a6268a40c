import assert from 'node:assert/strict'
import { test } from 'node:test'
import { rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill } from '../run.fixture.ts'

test('keeps the newest rows, after the prompt and after each row of the answer', () => {
  for (const kept of keptBy('window', { n: 40, budget: 7 }).flat()) assert.deepEqual(kept, rows(33, 40))
  let { cache } = prefill('window', { n: 40, budget: 7 })
  for (let step = 1; step <= 10; step++) {
    cache = decodeStep(choosePolicy('window'), cache, { budget: 7 })
    assert.deepEqual([...cache[2]![1]!], rows(33 + step, 40 + step))
  }
})
