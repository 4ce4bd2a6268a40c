/** The formulas of the measurements, on tensors made by hand. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { attention, DIMS, randoms } from '../../policies/attention.fixture.ts'
import { attendTwice, relativeErrors } from './layer-error.ts'
import { addCopyStep, rankHeads, wordRecall } from './needle-heads.ts'
import { CopyScores } from './razorattention.ts'
import { groupMeans, headEntropies, upperHalf } from './uncomp.ts'

const close = (got: number, want: number, within = 1e-6) =>
  assert.ok(Math.abs(got - want) <= within, `${got}, and ${want} was expected`)

describe('echo and induction', () => {
  it('sum over all earlier copies, and over what followed them, without what stands before the first copy', () => {
    // BOS, then copies of 3 tokens: rows 1 2 3 | 4 5 6 | 7 8 9.
    const scores = new CopyScores(2, 3, 1)
    const P = (i: number, head: number, at: Readonly<Record<number, number>>) => {
      const p = new Float32Array(2 * (i + 1))
      for (const [j, x] of Object.entries(at)) p[head * (i + 1) + Number(j)] = x
      return p
    }
    // Row 4 copies row 1. Row 7 copies rows 4 and 1; j = 4 - 3 - 3 would be before the text.
    scores.add(P(4, 0, { 0: 0.25, 1: 0.5, 2: 0.125 }), 4)
    scores.add(P(7, 1, { 1: 0.125, 2: 0.25, 4: 0.0625, 5: 0.5 }), 7)
    // Row 6 copies row 3, whose follower is row 4; row 0 is BOS and counts for nothing.
    scores.add(P(6, 0, { 0: 0.5, 4: 0.25 }), 6)
    assert.deepEqual([...scores.echo], [0.5 / 3, 0.1875 / 3])
    assert.deepEqual([...scores.induction], [0.375 / 3, 0.75 / 3])
  })
})

describe("a needle's heads", () => {
  it('get its mass once for each place that holds the produced token', () => {
    // Rows 0 to 5, the needle in [2, 5): tokens 7 8 7.
    const P = Float32Array.of(0, 0, 0.25, 0.125, 0.125, 0.5, /* head 1 */ 0.5, 0.25, 0, 0, 0.25, 0)
    const needle = Int32Array.of(7, 8, 7)
    const scores = new Float64Array(2)
    const add = (token: number) => addCopyStep(scores, P, { from: 2, to: 5 }, needle, token)
    add(8)
    assert.deepEqual([...scores], [0.5, 0.25])
    add(7) // stands in it twice
    assert.deepEqual([...scores], [1.5, 0.75])
    add(9)
    assert.deepEqual([...scores], [1.5, 0.75])
  })

  it('are counted where more than half of the words come back, each as often as it is there', () => {
    assert.equal(wordRecall('The code for Vera is 12.', 'The code for Vera is 12.'), 1)
    assert.equal(wordRecall('12', 'The code is 12'), 0.25)
    assert.equal(wordRecall('the the', 'the code of the house'), 0.4)
    assert.equal(wordRecall('the', 'the code of the house'), 0.2)
    assert.equal(wordRecall('', 'a'), 0)
  })

  it('are ranked best first, of equals the first', () => {
    assert.deepEqual(rankHeads([Float64Array.of(1, 3, 2), Float64Array.of(0, 0, 5)]), [
      [1, 2, 0],
      [2, 0, 1],
    ])
  })
})

describe('the error of a layer', () => {
  const { heads: H, kvHeads, headDim: d } = DIMS
  const [n, promptRows] = [12, 9]

  it('compares attention over all rows with softmax over the kept ones and the answer', () => {
    const next = randoms(3)
    const P = attention(DIMS, n, 5)[0]!
    const p = Float32Array.from(P.flatMap((head) => head[n - 1]!))
    const spare = 2
    const values = Float32Array.from({ length: d * (n + spare) * kvHeads }, () => next() - 0.5)
    const kept = [Int32Array.of(0, 4, 8), Int32Array.of(2, 3, 7)]
    const [all, cut] = attendTwice(p, values, kept, promptRows, DIMS)
    for (let h = 0; h < H; h++) {
      const kvHead = Math.floor(h / (H / kvHeads))
      // Softmax of the logits ln P over the subset.
      const rows = [...kept[kvHead]!, 9, 10, 11]
      const sum = rows.reduce((s, j) => s + P[h]![n - 1]![j]!, 0)
      for (let e = 0; e < d; e++) {
        const v = (j: number) => values[(kvHead * (n + spare) + j) * d + e]!
        close(
          cut[h * d + e]!,
          rows.reduce((s, j) => s + (P[h]![n - 1]![j]! / sum) * v(j), 0),
        )
        close(
          all[h * d + e]!,
          P[h]![n - 1]!.reduce((s, x, j) => s + x * v(j), 0),
        )
      }
    }
  })

  it('is that of the outputs, relative, summed over the steps', () => {
    // |o| = 5, |o_c - o| = 5; then |o| = 0 and |o_c - o| = 2.
    const got = relativeErrors(Float32Array.of(3, 4, 0, 0, 0, 0, 0, 2), 2)
    close(got, 5 / (5 + 1e-5) + 2 / 1e-5, 0.1)
  })
})

describe('entropies of heads', () => {
  it('are those of their own queries', () => {
    const [d, H, T] = [8, 2, 400]
    const next = randoms(1)
    const gauss = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
    const q = new Float32Array(d * H * T)
    for (let t = 0; t < T; t++) {
      const along = gauss()
      for (let i = 0; i < d; i++) {
        q[(t * H + 0) * d + i] = gauss()
        q[(t * H + 1) * d + i] = along * (i + 1)
      }
    }
    const [flat, line] = headEntropies(q, d, H)
    // Of d equal eigenvalues 1/d the d/4 largest count; the other head has one direction.
    close(flat!, ((d / 4) * Math.log(d)) / d, 0.05)
    close(line!, 0, 1e-6)
  })

  it('are averaged over the heads of a group, and the upper half of a layer gets votes', () => {
    assert.deepEqual(groupMeans([1, 3, 5, 9], 2), [2, 7])
    assert.deepEqual(upperHalf([2, 7]), [1])
    assert.deepEqual(upperHalf([1, 4, 3, 2]), [1, 2])
    assert.deepEqual(upperHalf([3, 1, 2]), [0])
    assert.deepEqual(upperHalf([5]), [])
  })
})
