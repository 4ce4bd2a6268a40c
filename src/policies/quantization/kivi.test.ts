import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DIMS, rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerStep, type Held, prefill, rowsStoredIn } from '../run.fixture.ts'

/** Rows that are in codes, which are the same in all heads. */
function sealed(held: Held): number {
  const inCodes = rowsStoredIn(held, 1, 0, 0)
  assert.deepEqual(inCodes, rows(0, inCodes.length))
  for (const heads of held.formats!) for (const list of heads) assert.deepEqual(list, held.formats![0]![0])
  return inCodes.length
}

test('keys by 32 rows of a channel, values by channels of a row', () => {
  const of = (spec: string, headDim: number) => {
    const { definition, options } = choosePolicy(spec)
    return definition.formats!({ ...DIMS, headDim }, options)
  }
  const codes = (bits: number, size: number) => ({
    kind: 'codes',
    keys: { bits, groups: { by: 'channel' } },
    values: { bits, groups: { by: 'token', size } },
  })
  assert.deepEqual(of('kivi', 128), [codes(4, 32)])
  assert.deepEqual(of('kivi?bits=2&group=64', 128), [codes(2, 64)])
  // What does not divide the head size gives way to what does.
  assert.deepEqual(of('kivi', 80), [codes(4, 20)])
  assert.deepEqual(of('kivi', 16), [codes(4, 16)])
})

test('of a prompt all whole blocks before the residual', () => {
  for (const [n, residual, want] of [
    [500, 128, 352],
    [512, 128, 384],
    [159, 128, 0],
    [160, 128, 32],
    [100, 128, 0],
    [100, 32, 64],
  ] as const)
    assert.equal(sealed(prefill(`kivi?residual=${residual}`, { n, budget: n })), want, `${n} rows`)
})

test('in the answer a block at a time; no row goes before it goes with the authors, and the newest never', () => {
  const R = 64
  const kivi = choosePolicy(`kivi?residual=${R}`)
  for (const n of [10, 64, 95, 200, 256]) {
    let held: Held = prefill(kivi.text, { n, budget: n })
    let before = sealed(held)
    // Theirs: keys go R at a time, values one by one.
    let keys = n - (n % R)
    for (let seen = n + 1; seen <= n + 150; seen++) {
      held = answerStep(kivi, held, { budget: n })
      if (seen - keys === R) keys = seen
      const now = sealed(held)
      assert.ok(now === before || now === before + 32, `from ${before} to ${now} rows`)
      assert.ok(now <= keys && now <= Math.max(0, seen - R), `${now} of ${seen} rows, theirs ${keys}`)
      assert.ok(seen - now < R + 32, `${seen - now} rows are exact`)
      before = now
    }
  }
})

test('exact while all is within the residual', () => {
  const kivi = choosePolicy('kivi?residual=256')
  let held: Held = prefill(kivi.text, { n: 120, budget: 120 })
  for (let step = 0; step < 130; step++) held = answerStep(kivi, held, { budget: 120 })
  assert.equal(sealed(held), 0)
})

test('needs no budget, looks at nothing, and has a residual of whole blocks', () => {
  const { definition, options } = choosePolicy('kivi')
  assert.equal(definition.takesBudget, false)
  assert.deepEqual(definition.observes(options), {})
  assert.throws(() => choosePolicy('kivi?residual=100'), /kivi: 'residual' must be a multiple of 32.* got 100/)
  assert.throws(() => choosePolicy('kivi?bits=3'), /'bits' must be one of 2, 4/)
})
