import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Random } from '../random-model.ts'
import { arrivalTimes, gamma } from './arrivals.ts'

const COUNT = 20_000

function moments(values: readonly number[]): { mean: number; cv: number } {
  const mean = values.reduce((a, b) => a + b, 0) / values.length
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length
  return { mean, cv: Math.sqrt(variance) / mean }
}

function gaps(times: Float64Array): number[] {
  return Array.from(times, (t, i) => t - (times[i - 1] ?? 0))
}

describe('gamma', () => {
  // The mean's own deviation is sqrt(shape / COUNT): 2 % of it or less for these shapes; seeds are fixed.
  for (const shape of [0.25, 0.5, 1, 2, 10])
    it(`of shape ${shape} has mean and variance ${shape}`, () => {
      const random = new Random(5)
      const { mean, cv } = moments(Array.from({ length: COUNT }, () => gamma(shape, random)))
      assert.ok(Math.abs(mean / shape - 1) < 0.05, `mean ${mean}`)
      assert.ok(Math.abs(cv * Math.sqrt(shape) - 1) < 0.05, `coefficient of variation ${cv}`)
    })

  it('of shape 1 is exponential: e^-1 of it lies above the mean', () => {
    const random = new Random(6)
    const above = Array.from({ length: COUNT }, () => gamma(1, random)).filter((x) => x > 1).length
    assert.ok(Math.abs(above / COUNT - Math.exp(-1)) < 0.01, `${above}`)
  })
})

describe('arrivalTimes', () => {
  for (const burstiness of [0.3, 1, 4])
    it(`burstiness ${burstiness}: the rate is kept to the end, gaps vary by 1 / sqrt(burstiness)`, () => {
      const times = arrivalTimes(COUNT, { rate: 50, burstiness }, new Random(1))
      assert.ok(Math.abs(times.at(-1)! - (1000 * COUNT) / 50) < 1e-3, `${times.at(-1)}`)
      const { mean, cv } = moments(gaps(times))
      assert.ok(Math.abs(mean - 20) < 1e-6, `${mean}`)
      assert.ok(Math.abs(cv * Math.sqrt(burstiness) - 1) < 0.05, `${cv}`)
      assert.ok(gaps(times).every((g) => g >= 0))
    })

  it('all at once without a rate, evenly with infinite burstiness', () => {
    const { POSITIVE_INFINITY } = Number
    assert.deepEqual([...arrivalTimes(3, { rate: POSITIVE_INFINITY, burstiness: 1 }, new Random(1))], [0, 0, 0])
    assert.deepEqual([...arrivalTimes(3, { rate: 4, burstiness: POSITIVE_INFINITY }, new Random(1))], [250, 500, 750])
  })

  it('is decided by the seed', () => {
    const of = (seed: number) => [...arrivalTimes(20, { rate: 2, burstiness: 1 }, new Random(seed))]
    assert.deepEqual(of(3), of(3))
    assert.notDeepEqual(of(3), of(4))
  })
})
