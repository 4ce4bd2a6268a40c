import assert from 'node:assert/strict'
import { test } from 'node:test'
import { budgetRows, parseBudget, showBudget } from './budget.ts'

const base = { model: { layers: 4, heads: 8, kvHeads: 2, headDim: 64 }, promptRows: 100, rowBytes: 256 }
const rows = (text: string | number) => budgetRows(parseBudget(text), base)

test('fractions, tokens, bytes', () => {
  assert.deepEqual(parseBudget('0.25'), { kind: 'fraction', fraction: 0.25 })
  assert.deepEqual(parseBudget('25%'), { kind: 'fraction', fraction: 0.25 })
  assert.deepEqual(parseBudget(1), { kind: 'fraction', fraction: 1 })
  assert.deepEqual(parseBudget(512), { kind: 'tokens', tokens: 512 })
  assert.deepEqual(parseBudget('1t'), { kind: 'tokens', tokens: 1 })
  assert.deepEqual(parseBudget('64MiB'), { kind: 'bytes', bytes: 64 * 2 ** 20 })
  assert.deepEqual(parseBudget('1.5GB'), { kind: 'bytes', bytes: 1.5e9 })
  assert.deepEqual(parseBudget('64m'), { kind: 'bytes', bytes: 64 * 2 ** 20 })
  assert.deepEqual(parseBudget('4096 B'), { kind: 'bytes', bytes: 4096 })
  assert.deepEqual(parseBudget('1TiB'), { kind: 'bytes', bytes: 2 ** 40 })
})

test('what is none of them is refused', () => {
  for (const text of ['', '0', '-1', '1.5', '101%', '0%', 'half', '1e999', '0.3t', Number.NaN])
    assert.throws(() => parseBudget(text), /give a fraction of the full cache/, String(text))
})

test('text and back', () => {
  for (const text of ['0.25', '512t', '4096B']) assert.equal(showBudget(parseBudget(text)), text)
})

test('rows per layer and KV head', () => {
  assert.equal(rows('0.29'), 29)
  assert.equal(rows('0.001'), 1)
  assert.equal(rows('1'), 100)
  assert.equal(rows('512'), 512)
  // A token is 4 layers * 2 heads * 256 bytes.
  assert.equal(rows('20KiB'), 10)
  assert.equal(rows('2048B'), 1)
  assert.throws(() => rows('2047B'), /does not hold one token/)
})
