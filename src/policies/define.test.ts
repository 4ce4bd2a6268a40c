import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { OptionSpecs } from '../contract/policy.ts'
import { definePolicy } from './define.ts'

const define = (name: string, options: OptionSpecs) =>
  definePolicy({
    name,
    family: 'eviction',
    summary: '',
    paper: null,
    options,
    observes: () => ({}),
    afterPrefill: () => ({ kind: 'keep-all' }),
  })

test('a definition is checked and frozen', () => {
  const ok = define('my-policy', { sinks: { kind: 'number', default: 4, min: 0, max: 9, help: '' } })
  assert.ok(Object.isFrozen(ok) && Object.isFrozen(ok.options) && Object.isFrozen(ok.options['sinks']))
  assert.throws(() => define('MyPolicy', {}), /lower case/)
  assert.throws(() => define('a', { 'x-y': { kind: 'flag', default: true, help: '' } }), /camelCase/)
  assert.throws(
    () => define('a', { x: { kind: 'number', default: 10, min: 0, max: 9, help: '' } }),
    /policy 'a': the default of 'x' must be a number from 0 to 9, got 10/,
  )
  assert.throws(
    () => define('a', { x: { kind: 'choice', default: 'c', choices: ['a', 'b'], help: '' } }),
    /one of a, b/,
  )
})
