import assert from 'node:assert/strict'
import { test } from 'node:test'
import { append, best, columnOf, DIMS, kept, mean, observeDecode, rows } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill } from '../run.fixture.ts'

test('keeps what the last query looks at, one set per layer, and the newest', () => {
  for (let seed = 1; seed <= 5; seed++) {
    const { P, cache } = prefill('tova', { n: 50, budget: 12, seed })
    for (const [layer, heads] of P.entries()) {
      const s = rows(0, 49).map((j) => mean(heads.map((p) => columnOf(p, j, 1)[0]!)))
      const want = [...best(s, 11), 49]
      for (const positions of cache[layer]!) assert.deepEqual([...positions], want)
    }
  }
})

test('is SnapKV with a window of one row, no pooling and one KV head', () => {
  const dims = { ...DIMS, kvHeads: 1 }
  for (let seed = 1; seed <= 5; seed++) {
    const setting = { dims, n: 50, budget: 12, seed }
    assert.deepEqual(keptBy('tova', setting), keptBy('snapkv?window=1&kernel=1', setting))
  }
})

test('in the answer the row that the newest query looks at least goes', () => {
  const setting = { budget: 12, seed: 4 }
  const tova = choosePolicy('tova')
  let { cache } = prefill('tova', { n: 50, ...setting })
  for (let step = 0; step < 20; step++) {
    const seen = observeDecode(DIMS, append(cache, 50 + step), step)
    const next = decodeStep(tova, cache, setting, seen)
    for (const [layer, { statistics }] of seen.decode!.entries()) {
      const s = rows(0, 12).map((j) => mean(rows(0, DIMS.heads).map((h) => statistics.sum![h * 13 + j]!)))
      const least = s.indexOf(Math.min(...s))
      const want = [...cache[layer]![0]!.filter((_, j) => j !== least), 50 + step]
      for (const head of kept(next)[layer]!) assert.deepEqual(head, want)
    }
    cache = next
  }
})

test('the answer grows up to the budget when the prompt is shorter', () => {
  const tova = choosePolicy('tova')
  let { cache } = prefill('tova', { n: 10, budget: 12 })
  const lengths = rows(0, 5).map(() => {
    cache = decodeStep(tova, cache, { budget: 12 })
    return cache[0]![0]!.length
  })
  assert.deepEqual(lengths, [11, 12, 12, 12, 12])
})
