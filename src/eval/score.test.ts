/** Metrics against values that were worked out by hand. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { METRICS, type Metric, score } from './score.ts'
import { agreementOfLogits, agreementOfTops, klOfLogits, klOfTops } from './score-divergence.ts'
import { rougeLsum } from './score-rouge.ts'
import { codeTokens, similarity } from './score-similarity.ts'

const close = (got: number, wanted: number) => assert.ok(Math.abs(got - wanted) < 1e-9, `${got}, not ${wanted}`)

/** Reply, answers, score, options. */
type Case = readonly [reply: string, answers: readonly string[], score: number, options?: readonly string[]]

const ADD = 'def add_two(values):\n    kept = []\n    return sum(kept)'
const MAX = 'def add_two(values):\n    kept = []\n    return max(kept)'
const OPTIONS = ['harp', 'drum', 'flute', 'bell']

const CASES: Readonly<Record<Metric, readonly Case[]>> = {
  substring: [
    ['It is k7x2.', ['k7x2'], 1],
    ['It is K7X2.', ['k7x2'], 0],
    ['a and b', ['a', 'c'], 0],
    ['', ['a'], 0],
  ],
  contained: [
    ['In the LIBRARY.', ['library'], 1],
    ['second', ['first', 'second'], 1],
    ['neither', ['first', 'second'], 0],
  ],
  fraction: [
    ['AB and CD', ['AB', 'CD', 'EF'], 2 / 3],
    ['ab', ['AB'], 0],
  ],
  f1: [
    // 2 common of 3 and 2 tokens: articles and signs do not count.
    ['The old harp, please!', ['old harp'], (2 * 2) / (3 + 2)],
    // A token counts no more often than the answer has it.
    ['harp harp', ['harp'], (2 * 1) / (2 + 1)],
    ['drum', ['harp', 'drum'], 1],
    ['drum', ['harp'], 0],
  ],
  'f1-characters': [
    ['在图书馆。', ['图书馆'], (2 * 3) / (4 + 3)],
    ['图书馆', ['图书馆'], 1],
    ['厨房', ['图书馆'], 0],
  ],
  number: [
    ['The largest is 973, not 12.', ['973'], 1],
    ['0973', ['973'], 1],
    ['12, then 973', ['973'], 0],
    ['none', ['973'], 0],
    ['', ['0'], 0],
  ],
  letter: [
    ['B', ['B'], 1, OPTIONS],
    ['B. drum', ['B'], 1, OPTIONS],
    ['(C)', ['C'], 1, OPTIONS],
    ['drum.', ['B'], 1, OPTIONS],
    ['As I see it, the answer is D.', ['D'], 1, OPTIONS],
    ['I think C is right', ['C'], 1, OPTIONS],
    ['Drums', ['D'], 0, OPTIONS],
    ['B', ['C'], 0, OPTIONS],
    ['', ['A'], 0, OPTIONS],
  ],
  'rouge-lsum': [
    ['the cat sat', ['the cat sat'], 1],
    ['dogs run', ['the cat sat'], 0],
  ],
  similarity: [
    [`\`\`\`python\n${ADD}\n\`\`\``, [ADD], 1, [ADD, MAX]],
    [`Here: ${ADD}\nThat is it.`, [ADD], 1, [ADD, MAX]],
    // Near enough, but nearer to another function.
    [MAX, [ADD], 0, [ADD, MAX]],
    [MAX, [ADD], 1, [ADD]],
    ['def add_two(values): pass', [ADD], 0, [ADD, MAX]],
  ],
}

describe('metrics', () => {
  for (const metric of Object.keys(METRICS) as Metric[])
    it(metric, () => {
      for (const [reply, answers, wanted, options] of CASES[metric])
        close(score(reply, { metric, answers, ...(options ? { options } : {}) }), wanted)
    })
})

describe('ROUGE-Lsum', () => {
  it('takes the union of what the sentences of a summary have in common with one of the reference', () => {
    // Lin 2004, 3.2: w1 w2 from the first sentence, w1 w3 w5 from the second: 4 of 5; the summary has 10 tokens, 9 here.
    const reference = 'w1 w2 w3 w4 w5'
    close(rougeLsum('w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5', reference), (2 * 4) / (10 + 5))
  })

  it('counts a token no more often than either text has it', () => {
    close(rougeLsum('cat', 'cat. cat.'), (2 * 1) / (1 + 2))
    close(rougeLsum('cat. cat.', 'cat'), (2 * 1) / (1 + 2))
  })

  it('does not mind the order of sentences, and minds it inside them', () => {
    close(rougeLsum('It was cold. They left.', 'They left. It was cold.'), 1)
    close(rougeLsum('left they', 'they left'), (2 * 1) / (2 + 2))
  })

  it('nothing is like nothing', () => assert.equal(rougeLsum('', 'they left'), 0))
})

it('similarity is 1 - edits / longer length, over tokens', () => {
  assert.deepEqual(codeTokens('x = abs(y1)'), ['x', '=', 'abs', '(', 'y1', ')'])
  close(similarity(['a', 'b', 'c', 'd'], ['a', 'x', 'c']), 1 - 2 / 4)
  close(similarity([], []), 1)
  close(similarity(['a'], []), 0)
})

describe('divergence from the full cache', () => {
  const logits = (p: readonly number[]) => Float32Array.from(p, (x) => Math.log(x) + 3)
  const tops = (p: readonly (readonly [number, number])[]) => p.map(([token, x]) => ({ token, logprob: Math.log(x) }))
  const P = [0.5, 0.25, 0.25]
  const Q = [0.25, 0.5, 0.25]

  it('is exact from logits, whatever is added to all of them', () => {
    // 0.5 ln 2 - 0.25 ln 2
    assert.ok(Math.abs(klOfLogits(logits(P), logits(Q)) - 0.25 * Math.log(2)) < 1e-6)
    assert.ok(Math.abs(klOfLogits(logits(P), logits(P))) < 1e-7)
    assert.throws(() => klOfLogits(logits(P), logits([0.5, 0.5])), RangeError)
  })

  it('lumps what is not in both lists, and knows that a token below a list is no likelier than its last', () => {
    // Common: token 0, 0.5 against 0.25. Token 1: 0.3 against 0.25 at most. The rest: 0.2 against 0.5 or more.
    const p = tops([
      [0, 0.5],
      [1, 0.3],
    ])
    const q = tops([
      [2, 0.5],
      [0, 0.25],
    ])
    close(klOfTops(p, q), 0.5 * Math.log(2) + 0.3 * Math.log(0.3 / 0.25) + 0.2 * Math.log(0.2 / 0.5))
    // Lists that share nothing: token 0 is 0.9 against 0.1 at most.
    const far = klOfTops(tops([[0, 0.9]]), tops([[1, 0.1]]))
    close(far, 0.9 * Math.log(0.9 / 0.1) + 0.1 * Math.log(0.1 / 0.9))
  })

  it('is never above the exact one, equals it when the lists hold everything, and is finite when they hold all of q', () => {
    const random = (seed: number) =>
      Array.from({ length: 40 }, (_, i) => Math.exp(3 * Math.sin(seed * 131 + i * i * 7)))
    for (let seed = 1; seed < 50; seed++) {
      const [p, q] = [random(seed), random(seed + 0.5)].map((w) => w.map((x) => x / w.reduce((a, b) => a + b)))
      const sorted = (of: readonly number[], n: number) =>
        tops(
          of
            .map((x, i) => [i, x] as const)
            .sort((a, b) => b[1] - a[1])
            .slice(0, n),
        )
      const exact = klOfLogits(logits(p!), logits(q!))
      assert.ok(klOfTops(sorted(p!, 10), sorted(q!, 10)) <= exact + 1e-6)
      assert.ok(Math.abs(klOfTops(sorted(p!, 40), sorted(q!, 40)) - exact) < 1e-5)
    }
    assert.ok(Number.isFinite(klOfTops(tops([[0, 0.5]]), tops([[0, 1]]))))
  })

  it('is a mean over places, beside the share of equal choices', () => {
    const places = agreementOfLogits([logits(P), logits(P)], [logits(P), logits(Q)])
    assert.deepEqual([places.n, places.top1], [2, 0.5])
    assert.ok(Math.abs(places.kl - 0.125 * Math.log(2)) < 1e-6)
    const same = tops([[4, 0.9]])
    assert.deepEqual(agreementOfTops([same, same], [same, tops([[5, 0.9]])]).top1, 0.5)
    assert.throws(() => agreementOfTops([same], []), RangeError)
  })
})
