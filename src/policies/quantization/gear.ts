/**
 * GEAR: what rounding to few bits gets wrong is alike from row to row, but for a few numbers. A matrix of low rank makes up for the
 * first, the few are stored exactly.
 *
 * Paper    Kang et al. 2024, arXiv 2403.05527.  Code  opengear-project/GEAR, compress_function.py.  Spec  gear.md
 * Formula  of the rows that are stored together, X ~ D + L + S:  S the outliers, the smallest and the largest outliers / 2 of each
 *          channel's keys and of each row's values;  D the rest in codes;  L = A B^T of rank r, fitted to X - D - S of each head
 * Backbone kivi: 2 bits, keys by 32 rows of a channel, values by up to 64 channels of a row
 *          kcvt: 4 bits, keys the same, values by the row
 * Keeps    all rows. Of the prompt the first n - n mod `buffer` in one chunk of rank `rank`; the others as they were computed
 * Answer   whenever `buffer` rows wait they become a chunk, of rank `decodeRank`, and are never touched again
 * Differs  groups of keys are 32 rows: with the authors 64 in kivi, and in kcvt all rows of the chunk. Groups and outliers of
 *          values are found within a head, theirs run over all heads side by side: 64 channels or fewer, as divide the head size.
 *          Ranks are for a head size of 128 and scaled to the model's, at least 1: at 32 the authors' 4 would cost four times as
 *          many bits. A buffer of 64 with kcvt too, theirs is 20. outliers=0 is GEAR-L
 * Exact    if n and the answer together are less than `buffer`
 */
import type { Codes, RowFormat } from '../../contract/format.ts'
import type { CompressionPlan, ModelDims, OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { blockProblem, channelGroup, storeOldest, wholeBlocks } from '../parts/blocks.ts'

/** Head size of the models that the authors' ranks are for. */
const RANKED_DIM = 128

/** Of {@link formats}. */
const PROMPT = 0
const ANSWER = 1

const rankOption = <const R extends number>(rank: R, of: string) =>
  ({
    kind: 'number',
    default: rank,
    min: 0,
    max: RANKED_DIM,
    whole: true,
    help: `rank that makes up for rounding ${of}, at a head size of 128, scaled to the model's; 0: none`,
  }) as const

const options = {
  backbone: {
    kind: 'choice',
    default: 'kivi',
    choices: ['kivi', 'kcvt'],
    help: 'kivi: 2 bits, small groups; kcvt: 4 bits, large ones',
  },
  outliers: {
    kind: 'number',
    default: 0.02,
    min: 0,
    max: 1,
    help: 'share of numbers that are stored exactly; 0: GEAR-L',
  },
  rank: rankOption(4, 'in the prompt'),
  decodeRank: rankOption(2, 'in chunks of the answer'),
  buffer: {
    kind: 'number',
    default: 64,
    min: 32,
    max: 65536,
    whole: true,
    help: 'rows that are stored together in the answer, a multiple of 32',
  },
} as const
type Options = OptionsOf<typeof options>

function backbone(model: ModelDims, name: Options['backbone']): { readonly keys: Codes; readonly values: Codes } {
  switch (name) {
    case 'kivi':
      return {
        keys: { bits: 2, groups: { by: 'channel' } },
        values: { bits: 2, groups: { by: 'token', size: channelGroup(model, 64) } },
      }
    case 'kcvt':
      return {
        keys: { bits: 4, groups: { by: 'channel' } },
        values: { bits: 4, groups: { by: 'token', size: model.headDim } },
      }
    default:
      return name satisfies never
  }
}

const scaledRank = (rank: number, { headDim }: ModelDims): number =>
  rank === 0 ? 0 : Math.max(1, Math.round((rank * headDim) / RANKED_DIM))

function formats(model: ModelDims, { backbone: name, outliers, rank, decodeRank }: Options): RowFormat[] {
  const { keys, values } = backbone(model, name)
  return [rank, decodeRank].map((of) => {
    const corrected = { outliers, rank: scaledRank(of, model) }
    return { kind: 'codes', keys: { ...keys, ...corrected }, values: { ...values, ...corrected } }
  })
}

/** A plan is a chunk. */
const chunk = (state: PolicyState, format: number, { buffer }: Options): CompressionPlan =>
  storeOldest(state, format, (computed) => wholeBlocks(computed, buffer))

export const gear = definePolicy({
  name: 'gear',
  family: 'quantization',
  summary: 'keeps all rows in 2 or 4 bits, with a low rank and a few exact numbers to make up for it',
  paper: {
    title: 'GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM',
    year: 2024,
    arxiv: '2403.05527',
  },
  options,
  takesBudget: false,
  check: ({ buffer }) => blockProblem('buffer', buffer),
  observes: () => ({}),
  formats,
  afterPrefill: (_, state, o) => chunk(state, PROMPT, o),
  afterDecode: (_, state, o) => chunk(state, ANSWER, o),
})
