import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DIMS, fullCache, rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill, stateFor } from '../run.fixture.ts'

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

test('rows stand side by side, as in the paper, and it has no end; kept positions end with the context', () => {
  const placement = (spec: string) => {
    const chosen = choosePolicy(spec)
    const { definition, options } = chosen
    const state = stateFor(chosen, { cache: fullCache(DIMS, 12) }, { budget: 11 })
    const plans = [definition.afterPrefill({}, state, options), definition.afterDecode!({}, state, options)]
    return [...plans.map((plan) => plan.kind === 'keep' && plan.placement), definition.isEndless!(options)]
  }
  assert.deepEqual(placement('streaming-llm'), ['slots', 'slots', true])
  assert.deepEqual(placement('streaming-llm?positions=kept'), [undefined, undefined, false])
})

test('a streamed prompt ends with the same rows, and never takes more than the budget and a chunk', () => {
  const setting = { n: 203, budget: 24 }
  for (const [spec, chunk] of [
    ['streaming-llm?prefill=stream', 6],
    ['streaming-llm?prefill=stream&chunk=50', 50],
  ] as const) {
    const held: number[] = []
    const { cache } = prefill(spec, setting, ([layer]) => held.push(layer![0]!.length))
    assert.deepEqual(cache, prefill('streaming-llm', setting).cache)
    assert.equal(held.length, Math.ceil(203 / chunk))
    assert.equal(Math.max(...held), 24 + chunk)
  }
})

test('a prompt is read in chunks only if it must be, of a size that budget and options give', () => {
  const chunk = (spec: string, n: number, budget: number) => {
    const { definition, options } = choosePolicy(spec)
    return definition.chunkRows!({ model: DIMS, rows: n, budget, contextLength: 2048 }, options)
  }
  assert.equal(chunk('streaming-llm', 5000, 100), null)
  assert.equal(chunk('streaming-llm?prefill=stream', 100, 100), null)
  assert.deepEqual(
    [3, 100, 1000].map((budget) => chunk('streaming-llm?prefill=stream', 5000, budget)),
    [1, 25, 64],
  )
})
