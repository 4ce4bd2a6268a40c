/**
 * RazorAttention's search for retrieval heads: a text of random tokens is read several times over, and a head that looks back
 * to the earlier copies finds things again wherever they stand.
 *
 * Paper    Tang et al. 2024, arXiv 2407.15891, section 3.  Spec  razorattention.md, 1
 * Text     BOS + (`period` random tokens) `repeats` times
 * Formula  for a row i of the second copy on, J(i) = { i - m period : m >= 1 } without BOS:
 *          echo(i) = sum over j in J(i) of P[i,j],  induction(i) = sum over j in J(i) of P[i,j+1];  a head's score: mean over i
 *          a KV head's score: the highest of its query heads', for echo and induction each by itself
 */
import type { RazorAttentionCalibration } from '../../contract/calibration.ts'
import { KvasirError } from '../../contract/errors.ts'
import type { Tokenizer } from '../../model/tokenizer/tokenizer.ts'
import { Draw } from '../tasks/draw.ts'
import { checkWhole, type Measurement, type Watch } from './measurement.ts'
import type { Subject } from './subject.ts'

export interface RazorAttentionSettings {
  /** Random tokens. */
  readonly period: number
  /** How often they come. */
  readonly repeats: number
  readonly seed: number
}

/** The authors'. */
const PERIOD = 2500
const REPEATS = 4

export const razorattention: Measurement<RazorAttentionSettings> = {
  policy: 'razorattention',
  unit: 'rows',

  complete({ repeats = REPEATS, period, seed = 0 }, { contextLength }) {
    checkWhole('repeats', repeats, 2, Math.floor((contextLength - 1) / 2))
    const longest = Math.floor((contextLength - 1) / repeats)
    const settings = { period: period ?? Math.min(PERIOD, longest), repeats, seed }
    checkWhole('period', settings.period, 2, longest)
    return settings
  },

  rows: ({ period, repeats }) => 1 + period * repeats,

  measure: (subject, { period, repeats, seed }, watch) => {
    const copy = randomTokens(subject.model.tokenizer, period, seed)
    return measureCopies(
      subject,
      Array.from({ length: repeats }, () => copy),
      watch,
    )
  },
}

/** @param copies of one length each; where they are not the same tokens, there is nothing to find again */
export async function measureCopies(
  subject: Subject,
  copies: readonly (readonly number[])[],
  watch: Watch = {},
): Promise<RazorAttentionCalibration> {
  const { tokenizer, config } = subject.model
  const start = tokenizer.addBos && tokenizer.bos !== null ? [tokenizer.bos] : []
  const period = copies[0]!.length
  const tokens = Int32Array.from([start, ...copies].flat())
  const first = start.length + period
  const scores = Array.from({ length: config.layers }, () => new CopyScores(config.heads, period, start.length))
  using text = subject.begin(watch.signal)
  await text.skim(tokens.subarray(0, first))
  for (let i = first; i < tokens.length; i++) {
    const { layers } = await text.look(tokens.subarray(i, i + 1))
    for (const [layer, { statistics }] of layers.entries()) scores[layer]!.add(statistics.sum!, i)
    watch.onProgress?.(i + 1 - first, tokens.length - first)
  }
  const perKvHead = (list: Float64Array) => maxOfGroups(list, config.kvHeads)
  return {
    policy: 'razorattention',
    echo: scores.map((s) => perKvHead(s.echo)),
    induction: scores.map((s) => perKvHead(s.induction)),
  }
}

/** Echo and induction of one layer's query heads. */
export class CopyScores {
  readonly #echo: Float64Array
  readonly #induction: Float64Array
  readonly #period: number
  readonly #first: number
  #rows = 0

  /** @param first row of the first copy: what is before it is no copy */
  constructor(heads: number, period: number, first: number) {
    this.#echo = new Float64Array(heads)
    this.#induction = new Float64Array(heads)
    this.#period = period
    this.#first = first
  }

  /** @param p what row i looked at, f32 [i + 1, H] */
  add(p: Float32Array, i: number): void {
    for (let h = 0; h < this.#echo.length; h++)
      for (let j = i - this.#period; j >= this.#first; j -= this.#period) {
        this.#echo[h]! += p[h * (i + 1) + j]!
        this.#induction[h]! += p[h * (i + 1) + j + 1]!
      }
    this.#rows++
  }

  /** [H] */
  get echo(): Float64Array {
    return this.#echo.map((sum) => sum / this.#rows)
  }

  /** [H] */
  get induction(): Float64Array {
    return this.#induction.map((sum) => sum / this.#rows)
  }
}

/** Tokens that stand for text, each as likely; some can come twice. @throws KvasirError MODEL_INVALID */
export function randomTokens(tokenizer: Tokenizer, n: number, seed: number): number[] {
  const all = Array.from({ length: tokenizer.vocabSize }, (_, token) => token)
  const ordinary = all.filter((token) => tokenizer.piece(token).length > 0)
  if (ordinary.length < 2) throw new KvasirError('MODEL_INVALID', 'the vocabulary has no tokens that stand for text')
  const r = new Draw(`razorattention-${seed}`)
  return Array.from({ length: n }, () => r.pick(ordinary))
}

/** [H] -> [Hkv] */
function maxOfGroups(list: Float64Array, kvHeads: number): number[] {
  const G = list.length / kvHeads
  return Array.from({ length: kvHeads }, (_, h) => Math.max(...list.subarray(h * G, (h + 1) * G)))
}
