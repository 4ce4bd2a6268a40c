import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DIMS, fullCache, stateOf } from './attention.fixture.ts'
import { full } from './full.ts'

test('keeps everything, whatever the budget', () => {
  assert.deepEqual(full.observes({}), {})
  assert.deepEqual(full.afterPrefill({}, stateOf(DIMS, fullCache(DIMS, 50), 1), {}), { kind: 'keep-all' })
  assert.equal(full.afterDecode, undefined)
})
