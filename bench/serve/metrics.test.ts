import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isGood, percentile, statistics, throughput, tpotMs } from './metrics.ts'
import type { Outcome } from './target.ts'

function outcome(fields: Partial<Outcome>): Outcome {
  return {
    ...{ error: null, status: 200, retryAfterMs: null, startMs: 0, ttftMs: 100, latencyMs: 500, gapsMs: [] },
    ...{ promptTokens: 10, cachedTokens: null, outputTokens: 5, pieces: 5, text: '', ...fields },
  }
}

describe('percentile', () => {
  it('is numpy.percentile', () => {
    // np.percentile([1, 2, 4, 8], [0, 25, 50, 90, 99, 100])
    for (const [p, value] of Object.entries({ 0: 1, 25: 1.75, 50: 3, 90: 6.8, 99: 7.88, 100: 8 }))
      assert.ok(Math.abs(percentile([1, 2, 4, 8], Number(p)) - value) < 1e-12, p)
    assert.equal(percentile([5], 99), 5)
    assert.equal(percentile([], 50), 0)
  })
})

describe('tpot', () => {
  it('leaves the first token out', () => {
    assert.equal(tpotMs(outcome({})), 100)
    assert.equal(tpotMs(outcome({ outputTokens: 1 })), null)
  })

  it('counts pieces when the server does not count', () => {
    assert.equal(tpotMs(outcome({ outputTokens: null, pieces: 9 })), 50)
  })
})

describe('goodput', () => {
  it('asks for every limit to be kept, ends included', () => {
    assert.ok(isGood(outcome({}), { ttft: 100, tpot: 100, e2el: 500 }))
    assert.ok(!isGood(outcome({}), { ttft: 99 }))
    assert.ok(!isGood(outcome({}), { tpot: 99 }))
    assert.ok(!isGood(outcome({}), { ttft: 1000, tpot: 1000, e2el: 499 }))
  })

  it('takes no time per token for that of an answer of one', () => {
    assert.ok(isGood(outcome({ outputTokens: 1 }), { tpot: 0 }))
  })
})

describe('throughput', () => {
  const outcomes = [
    outcome({ startMs: 1000, gapsMs: [100, 100, 100, 100] }),
    outcome({ startMs: 1200, ttftMs: 300, latencyMs: 1300, gapsMs: [200, 200, 300, 300] }),
    outcome({ startMs: 1500, latencyMs: 400 }),
    outcome({ startMs: 1200, error: 'HTTP 500: no', latencyMs: 0 }),
  ]

  it('is of requests that succeeded, over the whole time', () => {
    const t = throughput(outcomes, 2000, {})
    assert.deepEqual(
      [t.completed, t.failed, t.total_input_tokens, t.total_output_tokens, t.request_throughput, t.request_goodput],
      [3, 1, 30, 15, 1.5, null],
    )
    assert.deepEqual([t.output_throughput, t.total_token_throughput], [7.5, 22.5])
  })

  it('counts good requests alone for goodput', () => {
    assert.equal(throughput(outcomes, 2000, { ttft: 200 }).request_goodput, 1)
    assert.equal(throughput(outcomes, 2000, { ttft: 50 }).request_goodput, 0)
  })

  it('finds the most at once: who ends when another begins is not with it', () => {
    // [1000, 1500), [1200, 2500), [1500, 1900)
    assert.equal(throughput(outcomes, 2000, {}).max_concurrent_requests, 2)
    const sooner = [...outcomes.slice(0, 2), outcome({ startMs: 1499 })]
    assert.equal(throughput(sooner, 2000, {}).max_concurrent_requests, 3)
  })

  it('finds the best second, counted from the first request', () => {
    // First second: 5 of the first answer, 1500, 1700, 1900 of the second, 1600 of the third.
    assert.equal(throughput(outcomes, 2000, {}).max_output_tokens_per_s, 9)
    assert.equal(throughput([], 1000, {}).max_output_tokens_per_s, 0)
  })
})

describe('statistics', () => {
  it("has vLLM's names, of the metrics that were asked for", () => {
    const outcomes = [1, 2, 4, 8].map((ttftMs) => outcome({ ttftMs }))
    const s = statistics([...outcomes, outcome({ ttftMs: 1000, error: 'no' })], ['ttft', 'itl'], [50, 99.9])
    assert.deepEqual(Object.keys(s), [
      ...['mean_ttft_ms', 'median_ttft_ms', 'std_ttft_ms', 'p50_ttft_ms', 'p99.9_ttft_ms'],
      ...['mean_itl_ms', 'median_itl_ms', 'std_itl_ms', 'p50_itl_ms', 'p99.9_itl_ms'],
    ])
    assert.deepEqual([s.mean_ttft_ms, s.median_ttft_ms, s.mean_itl_ms], [3.75, 3, 0])
    // np.std([1, 2, 4, 8])
    assert.ok(Math.abs(s.std_ttft_ms! - 2.680951) < 1e-6)
  })

  it('takes gaps of all answers together', () => {
    const s = statistics([outcome({ gapsMs: [1, 3] }), outcome({ gapsMs: [8] })], ['itl'], [])
    assert.deepEqual([s.mean_itl_ms, s.median_itl_ms], [4, 3])
  })
})
