/**
 * LaCache: each layer drops other rows of the past, so that every row lives on in some of them. Cells that are left, drawn as
 * layer against row, look like ladders. What is older has been thinned more often.
 *
 * Paper    Shi et al. 2025, arXiv 2507.14204.  Code  GATECH-EIC/LaCache, ppl/lacache/kv_cache.py.  Spec  lacache.md
 * Formula  S span, O overlap, in layers; C rows per layer. B = 1 + ceil((Lyr - S) / (S - O)) rows are a ladder, of which a layer
 *          keeps A = min(ceil(S / (S - O)), B) and drops R = B - A;  C = budget + floor(R/2), so that the saw's mean is the budget
 * Keeps    of the ladder that begins at row p, layer l keeps the A rows from p + l mod (R + 1) on
 * When     more than C rows are there: as many ladders as needed from a cursor on, which moves behind what they leave. Where it
 *          meets the last Lyr rows, it starts over behind the sinks, on rows that were thinned before; if much is to go (a long
 *          prompt read as a whole), with ladders of t (B - 1) + 1 rows, of which every t-th of A is kept
 * Distance counted in cached rows; with positions=kept as in the text
 * Differs  a layer's first row in a stretched ladder is l mod (t R + 1), with the authors l mod (t (B - 1) - A + 2): the same for
 *          A = 1 or t = 1; for others theirs picks rows twice. A pass from the sinks spares the last Lyr rows and is repeated if
 *          too little went; theirs takes from them, and fails for long prompts in small caches. As with theirs, the pass from the
 *          cursor may take R - 1 of the last Lyr rows. Span half the layers by default, for models of any depth
 * Exact    if budget >= n
 */
import { KvasirError } from '../../contract/errors.ts'
import type { CompressionPlan, ModelDims, OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { isEndless, placed, streamChunk, streamOptions } from '../parts/stream-options.ts'

const options = {
  span: {
    kind: 'number',
    default: 0,
    min: 0,
    max: 1024,
    whole: true,
    help: 'layers in which a row lives on; 0: half of them',
  },
  overlap: {
    kind: 'number',
    default: 0,
    min: 0,
    max: 1023,
    whole: true,
    help: 'of these, layers shared with the next',
  },
  sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay' },
  pattern: {
    kind: 'choice',
    default: 'modulo',
    choices: ['modulo', 'contiguous', 'strided'],
    help: "which layers keep a row: every so many (the authors' code), some in a row (their drawing), all (no ladder)",
  },
  ...streamOptions(),
} as const
type Options = OptionsOf<typeof options>

/** Sizes in rows; letters as in the paper and above. */
interface Ladder {
  readonly Lyr: number
  readonly A: number
  readonly B: number
  readonly R: number
  /** Rows per layer. */
  readonly C: number
  /** S - O: layers with the same rows, in the contiguous pattern. */
  readonly shift: number
  readonly sinks: number
}

/** Ladders one after the other. */
interface Pass {
  readonly from: number
  readonly ladders: number
  /** t: 1 unless a pass from the sinks has to free more than one pass can. */
  readonly stretch: number
}

interface Memory {
  readonly cursor: number
}

/** @throws KvasirError INVALID_ARGUMENT where the model is too shallow, or the budget too small */
function ladderOf({ layers: Lyr }: ModelDims, budget: number, { span, overlap, sinks }: Options): Ladder {
  const S = span || Math.max(1, Math.floor(Lyr / 2))
  const wrong = (text: string) =>
    new KvasirError('INVALID_ARGUMENT', `lacache: ${text}`, { layers: Lyr, span: S, overlap })
  if (overlap >= S)
    throw wrong(`'overlap' ${overlap} must be less than 'span', which is ${S} in a model of ${Lyr} layers`)
  const B = 1 + Math.ceil(Math.max(0, Lyr - S) / (S - overlap))
  const A = Math.min(Math.ceil(S / (S - overlap)), B)
  const R = B - A
  if (R < 1)
    throw wrong(
      `with span ${S} and overlap ${overlap} each of the model's ${Lyr} layers would keep every row. ` +
        (Lyr === 1
          ? 'A ladder needs 2 layers or more'
          : `Take a span of at most ${Math.floor(Lyr / 2)}, or less overlap`),
    )
  const least = sinks + Lyr + B
  if (budget < least)
    throw wrong(
      `a budget of ${budget} rows is too small: ${sinks} sinks, the last ${Lyr} rows and a ladder of ${B} take ${least}. ` +
        'Raise the budget, or lower sinks',
    )
  return { Lyr, A, B, R, C: budget + Math.floor(R / 2), shift: S - overlap, sinks }
}

/** Rows that are one ladder. */
const lengthOf = (stretch: number, B: number): number => stretch * (B - 1) + 1

/** What of n rows must go so that at most C are left, and where the cursor stands then. */
function passesOf(n: number, cursor: number, { Lyr, A, B, R, C, sinks }: Ladder): { passes: Pass[]; cursor: number } {
  let over = n - C
  // As many as the rows up to the last Lyr of C can hold when they are thinned.
  const first = Math.min(Math.ceil(over / R), Math.floor((C - cursor - Lyr) / A))
  const passes: Pass[] = [{ from: cursor, ladders: first, stretch: 1 }]
  over -= first * R
  let end = cursor + first * A
  const room = C - sinks - Lyr // at least B: each pass frees something
  while (over > 0) {
    const onePass = Math.floor(room / A) * R
    const stretch = Math.min(Math.ceil(over / onePass), Math.floor((room + over - 1) / (B - 1)))
    const length = lengthOf(stretch, B)
    const ladders = Math.min(Math.ceil(over / (length - A)), Math.floor((room + over) / length))
    passes.push({ from: sinks, ladders, stretch })
    over -= ladders * (length - A)
    end = sinks + ladders * A
  }
  return { passes, cursor: end }
}

/** A layer's first row in a ladder, 0 to `most` = t R. */
function offsetOf(layer: number, most: number, { shift }: Ladder, pattern: Options['pattern']): number {
  switch (pattern) {
    case 'modulo':
      return layer % (most + 1)
    case 'contiguous':
      return Math.min(most, Math.floor(layer / shift))
    case 'strided':
      return 0
    default:
      return pattern satisfies never
  }
}

/** Of n rows, those that a layer keeps in a pass: all but some of each ladder's, which are `offset` + t k, k < A. */
function keptIn(n: number, { from, ladders, stretch }: Pass, offset: number, { A, B }: Ladder): Int32Array {
  const length = lengthOf(stretch, B)
  const kept = new Int32Array(n - ladders * (length - A))
  let at = 0
  for (let j = 0; j < from; j++) kept[at++] = j
  for (let i = 0; i < ladders; i++) for (let k = 0; k < A; k++) kept[at++] = from + length * i + offset + stretch * k
  for (let j = from + length * ladders; j < n; j++) kept[at++] = j
  return kept
}

/** Of n rows, those that a layer keeps after all passes. */
function keptBy(layer: number, n: number, passes: readonly Pass[], ladder: Ladder, o: Options): Int32Array {
  let kept = Int32Array.from({ length: n }, (_, j) => j)
  for (const pass of passes) {
    const before = kept
    const offset = offsetOf(layer, pass.stretch * ladder.R, ladder, o.pattern)
    kept = keptIn(before.length, pass, offset, ladder).map((j) => before[j]!)
  }
  return kept
}

function compact(state: PolicyState, o: Options): CompressionPlan {
  const { model, budget, positions, memory } = state
  const ladder = ladderOf(model, budget, o)
  // The same in all layers and heads.
  const n = positions(0, 0).length
  if (n <= ladder.C) return { kind: 'keep-all' }
  const from = (memory as Memory | undefined)?.cursor ?? ladder.sinks
  const { passes, cursor } = passesOf(n, from, ladder)
  const rows = Array.from({ length: model.layers }, (_, layer) =>
    new Array<Int32Array>(model.kvHeads).fill(keptBy(layer, n, passes, ladder, o)),
  )
  return placed({ kind: 'keep', rows, memory: { cursor } satisfies Memory }, o)
}

export const lacache = definePolicy({
  name: 'lacache',
  family: 'eviction',
  summary: 'each layer keeps other rows of the past, the older the fewer, in ladders',
  paper: {
    title: 'LaCache: Ladder-Shaped KV Caching for Efficient Long-Context Modeling of Large Language Models',
    year: 2025,
    arxiv: '2507.14204',
  },
  options,
  check: ({ span, overlap }) =>
    span > 0 && overlap >= span ? `'overlap' ${overlap} must be less than 'span' ${span}` : null,
  observes: () => ({}),
  isEndless,
  chunkRows(prompt, o) {
    // Before anything is computed: a budget that is too small would be found out at the end of the prompt only.
    ladderOf(prompt.model, prompt.budget, o)
    return streamChunk(prompt, o)
  },
  afterChunk: compact,
  afterPrefill: (_, state, o) => compact(state, o),
  afterDecode: (_, state, o) => compact(state, o),
})
