import assert from 'node:assert/strict'
import { test } from 'node:test'
import { traceOf } from './traceparent.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const spanId = '00f067aa0ba902b7'

test('reads what the standard allows', () => {
  const valid = { traceId, spanId, sampled: true, state: null }
  assert.deepEqual(traceOf({ traceparent: `00-${traceId}-${spanId}-01` }), valid)
  assert.deepEqual(traceOf({ traceparent: `00-${traceId}-${spanId}-00` }), { ...valid, sampled: false })
  assert.deepEqual(traceOf({ traceparent: `00-${traceId}-${spanId}-03` }), valid)
  assert.deepEqual(traceOf({ traceparent: `01-${traceId}-${spanId}-01-more` }), valid)
  const state = 'a=1,b=2'
  assert.deepEqual(traceOf({ traceparent: `00-${traceId}-${spanId}-01`, tracestate: state }), { ...valid, state })
})

test('ignores what it does not', () => {
  const wrong = [
    '',
    'nonsense',
    `00-${traceId}-${spanId}`,
    `00-${traceId}-${spanId}-01-more`,
    `ff-${traceId}-${spanId}-01`,
    `00-${'0'.repeat(32)}-${spanId}-01`,
    `00-${traceId}-${'0'.repeat(16)}-01`,
    `00-${traceId.toUpperCase()}-${spanId}-01`,
    `00-${traceId}-${spanId}-1`,
    `00-${traceId}x-${spanId}-01`,
  ]
  for (const traceparent of wrong) assert.equal(traceOf({ traceparent }), null, traceparent)
  assert.equal(traceOf({ tracestate: 'a=1' }), null)
})
