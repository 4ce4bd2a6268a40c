import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { parseDuration, typedDuration } from './duration.ts'

describe('durations', () => {
  const cases = { '500ms': 500, '0s': 0, '30s': 30_000, '1.5m': 90_000, '.5h': 1_800_000, ' 2 D ': 172_800_000 }
  for (const [text, ms] of Object.entries(cases)) it(`"${text}"`, () => assert.equal(parseDuration(text), ms))

  for (const text of ['', '30', 's', '-1s', '1 week', '1e3s', '5m30s', 'Infinitys', '99999999999999d'])
    it(`refuses "${text}"`, () => assert.throws(() => parseDuration(text), /must be a duration such as/))

  it('are typed as they were meant', () => {
    assert.deepEqual([0, 1, 1500, 60_000, 5_400_000].map(typedDuration), ['0ms', '1ms', '1500ms', '1m', '90m'])
    fc.assert(fc.property(fc.nat(2 ** 31 - 1), (ms) => parseDuration(typedDuration(ms)) === ms))
  })
})
