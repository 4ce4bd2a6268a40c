import assert from 'node:assert/strict'
import { it } from 'node:test'
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
