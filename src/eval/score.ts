/**
 * How right a reply is, 0 to 1: the metrics of SCBench (`compute_scores.py`), as its papers and code describe them.
 *
 * Where we differ: `similarity` measures by edit distance, not BLEU (score-similarity.ts); in `many_shot` the reply must
 * hold the answer, where the original tests for any of its characters.
 */
import { rougeLsum } from './score-rouge.ts'
import { nearestIsTarget } from './score-similarity.ts'

/** Their definitions stand at {@link METRICS}. */
export type Metric =
  | 'substring'
  | 'contained'
  | 'fraction'
  | 'f1'
  | 'f1-characters'
  | 'number'
  | 'letter'
  | 'rouge-lsum'
  | 'similarity'

/** What of a turn is needed to score its reply. */
export interface Scored {
  readonly answers: readonly string[]
  readonly metric: Metric
  readonly options?: readonly string[]
}

type Score = (reply: string, turn: Scored) => number

export const METRICS: { readonly [M in Metric]: Score } = {
  /** Every answer occurs in the reply, case and all. */
  substring: (reply, { answers }) => Number(answers.every((a) => reply.includes(a))),
  /** Any answer occurs in the reply, whatever the case. */
  contained: (reply, { answers }) => Number(answers.some((a) => reply.toUpperCase().includes(a.toUpperCase()))),
  /** Share of the answers that occur, case and all. */
  fraction: (reply, { answers }) => answers.filter((a) => reply.includes(a)).length / answers.length,
  /** Best token F1 over the answers: lower case, without punctuation and articles, split at spaces (SQuAD's). */
  f1: (reply, { answers }) => Math.max(...answers.map((a) => f1(englishTokens(reply), englishTokens(a)))),
  /** Best F1 over characters, for Chinese: without punctuation and spaces. */
  'f1-characters': (reply, { answers }) => Math.max(...answers.map((a) => f1(characters(reply), characters(a)))),
  /** The first number of the reply is the answer. */
  number: (reply, { answers }) => Number(firstNumber(reply) === Number(answers[0])),
  /** The option that the reply names is the answer. */
  letter: (reply, { answers, options = [] }) => Number(chosenLetter(reply, options) === answers[0]),
  /** F-measure of ROUGE-Lsum with the reference. */
  'rouge-lsum': (reply, { answers }) => rougeLsum(reply, answers[0]!),
  /** Of all functions the reply is nearest to the answer, and near enough. */
  similarity: (reply, { answers, options = [] }) => Number(nearestIsTarget(reply, answers[0]!, options)),
}

export function score(reply: string, turn: Scored): number {
  return METRICS[turn.metric](reply, turn)
}

/** Harmonic mean of precision and recall over tokens, each counted as often as it occurs. */
function f1(got: readonly string[], wanted: readonly string[]): number {
  const left = new Map<string, number>()
  for (const token of wanted) left.set(token, (left.get(token) ?? 0) + 1)
  let common = 0
  for (const token of got) {
    const n = left.get(token) ?? 0
    if (n === 0) continue
    left.set(token, n - 1)
    common++
  }
  return common === 0 ? 0 : (2 * common) / (got.length + wanted.length)
}

function englishTokens(text: string): string[] {
  return text
    .toLowerCase()
    .replace(/\p{P}/gu, '')
    .split(/\s+/)
    .filter((w) => w !== '' && !['a', 'an', 'the'].includes(w))
}

const characters = (text: string): string[] => [...text.replace(/[\p{P}\p{S}\s]/gu, '')]

function firstNumber(text: string): number | null {
  const found = text.match(/-?\d+(\.\d+)?/)
  return found ? Number(found[0]) : null
}

/**
 * In this order: a first character A to D that begins no word; the text of an option, alone; a letter behind "answer is"
 * and the like; the first single letter A to D.
 */
function chosenLetter(reply: string, options: readonly string[]): string | null {
  const text = reply.trim()
  const first = text.match(/^\(?([A-D])(?![\p{L}\p{N}'])/u)
  if (first) return first[1]!
  const bare = (s: string) => s.trim().replace(/\.$/, '')
  const at = options.findIndex((option) => bare(option) === bare(text))
  if (at >= 0) return 'ABCD'[at]!
  const named = text.match(/(?:answer|option|choice)(?: is)?:?\s*\(?([A-D])(?![\p{L}\p{N}])/iu)
  const single = text.match(/(?<![\p{L}\p{N}])([A-D])(?![\p{L}\p{N}'])/u)
  return (named ?? single)?.[1]?.toUpperCase() ?? null
}
