import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { RowFormat } from '../../contract/format.ts'
import { DIMS, rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerStep, type Held, prefill, rowsStoredIn } from '../run.fixture.ts'

function formatsOf(spec: string, headDim: number): Extract<RowFormat, { readonly kind: 'codes' }>[] {
  const { definition, options } = choosePolicy(spec)
  return definition.formats!({ ...DIMS, headDim }, options).map((format) => {
    assert.ok(format.kind === 'codes', format.kind)
    return format
  })
}

test('the backbones, with outliers and a low rank for keys and values alike', () => {
  const extras = { outliers: 0.02, rank: 4 }
  assert.deepEqual(formatsOf('gear', 128)[0], {
    kind: 'codes',
    keys: { bits: 2, groups: { by: 'channel' }, ...extras },
    values: { bits: 2, groups: { by: 'token', size: 64 }, ...extras },
  })
  assert.deepEqual(formatsOf('gear?backbone=kcvt', 128)[0], {
    kind: 'codes',
    keys: { bits: 4, groups: { by: 'channel' }, ...extras },
    values: { bits: 4, groups: { by: 'token', size: 128 }, ...extras },
  })
  const sizes = [32, 64, 96, 256].map((d) => formatsOf('gear', d)[0]!.values.groups)
  assert.deepEqual(
    sizes,
    [32, 64, 48, 64].map((size) => ({ by: 'token', size })),
  )
  // GEAR-L, and the backbone alone.
  assert.equal(formatsOf('gear?outliers=0', 64)[0]!.keys.outliers, 0)
  for (const { keys, values } of formatsOf('gear?outliers=0&rank=0&decodeRank=0', 64))
    assert.deepEqual([keys.rank, values.rank, keys.outliers, values.outliers], [0, 0, 0, 0])
})

test('ranks are for a head size of 128: of the prompt 4, of the answer 2', () => {
  const ranks = (spec: string, d: number) => formatsOf(spec, d).map(({ keys }) => keys.rank)
  assert.deepEqual(
    [128, 64, 32, 16].map((d) => ranks('gear', d)),
    [
      [4, 2],
      [2, 1],
      [1, 1],
      [1, 1],
    ],
  )
  assert.deepEqual(ranks('gear?rank=128&decodeRank=0', 64), [64, 0])
})

test('the prompt is one chunk, then each full buffer; the newest rows are as they were computed', () => {
  const gear = choosePolicy('gear')
  for (const n of [30, 63, 64, 200]) {
    let held: Held = prefill('gear', { n, budget: n })
    const prompt = n - (n % 64)
    const check = (seen: number) => {
      const answer = seen - prompt - ((seen - prompt) % 64)
      for (const [layer, heads] of held.cache.entries())
        for (const h of heads.keys()) {
          assert.deepEqual(rowsStoredIn(held, 1, layer, h), rows(0, prompt))
          assert.deepEqual(rowsStoredIn(held, 2, layer, h), rows(prompt, prompt + answer))
        }
    }
    check(n)
    for (let seen = n + 1; seen <= n + 140; seen++) {
      held = answerStep(gear, held, { budget: n })
      check(seen)
    }
  }
})

test('chunks of any number of whole blocks', () => {
  assert.equal(rowsStoredIn(prefill('gear?buffer=96', { n: 200, budget: 200 }), 1, 0, 0).length, 192)
  assert.throws(() => choosePolicy('gear?buffer=50'), /gear: 'buffer' must be a multiple of 32.* got 50/)
  const { definition, options } = choosePolicy('gear')
  assert.equal(definition.takesBudget, false)
  assert.deepEqual(definition.observes(options), {})
})
