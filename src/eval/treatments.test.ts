import assert from 'node:assert/strict'
import { it } from 'node:test'
import type { KvasirError } from '../contract/errors.ts'
import { FULL, OWN, treatmentsOf } from './treatments.ts'

it('policies that take a budget run with each, the others once, full once and first', () => {
  const treatments = treatmentsOf(['snapkv', 'kivi?bits=2', 'full'], ['50%', 0.25], ['question', 'context'])
  const names = treatments.map(({ policy, budget, compressAt }) => `${policy} ${budget} ${compressAt}`)
  assert.deepEqual(treatments[0], FULL)
  assert.deepEqual(names.slice(1), [
    'snapkv 0.5 question',
    'snapkv 0.5 context',
    'snapkv 0.25 question',
    'snapkv 0.25 context',
    `kivi?bits=2 ${OWN} question`,
    `kivi?bits=2 ${OWN} context`,
  ])
})

it('quantised caches stand beside policies, each once however it is written, and take no budget', () => {
  const treatments = treatmentsOf(['types?v=q4_0&k=q8_0', 'types?k=q8_0&v=q4_0', 'types?k=q8_0'], [0.5], ['question'])
  assert.deepEqual(
    treatments.map(({ policy, budget }) => [policy, budget]),
    [
      ['types?k=q8_0&v=q4_0', OWN],
      ['types?k=q8_0', OWN],
    ],
  )
})

it('types that there are not are refused by name', () => {
  for (const [spec, text] of [
    ['types', /names no type/],
    ['types?k=q8', /k must be one of f16, .*Did you mean 'q8_0'/],
    ['types?q=q8_0', /'q' is neither k nor v/],
  ] as const)
    assert.throws(
      () => treatmentsOf([spec], [0.5], [null]),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && text.test(e.message),
      spec,
    )
})
