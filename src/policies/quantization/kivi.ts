/**
 * KIVI: few channels of the keys are large, and always the same ones; values have no such channels. So keys are rounded channel by
 * channel, values row by row.
 *
 * Paper    Liu et al. 2024, arXiv 2402.02750.  Code  jy-yuan/KIVI, models/llama_kivi.py.  Spec  baselines.md, 9
 * Formula  of a group X: scale = (max X - min X) / (2^bits - 1), code = round((x - min X) / scale), x^ = code * scale + min X
 *          keys, with their rotation: a group is 32 rows of one channel;  values: a group is `group` channels of one row
 * Keeps    all rows. The newest `residual` as they were computed, and up to 31 before them that do not fill a block yet
 * Answer   whenever 32 rows have left the newest `residual`, they are rounded, once and for good
 * Differs  a row's key and value are rounded together. With the authors the tail of exact values is `residual` rows, that of exact
 *          keys swings between 0 and residual - 1; here both are `residual` to residual + 31 rows. So nothing is rounded earlier
 *          than theirs, and right after a flush, where theirs has no exact keys, there are all. Groups of keys are 32 rows whatever
 *          `group` says. 4 bits by default, as the authors advise where query heads share keys. Where `group` does not divide the
 *          head size, the next smaller number that does
 * Exact    if n and the answer together are less than residual + 32
 */
import type { RowFormat } from '../../contract/format.ts'
import type { CompressionPlan, ModelDims, OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { blockProblem, channelGroup, storeOldest, wholeBlocks } from '../parts/blocks.ts'

const options = {
  bits: { kind: 'choice', default: '4', choices: ['2', '4'], help: 'of each number' },
  group: { kind: 'number', default: 32, min: 1, max: 1024, whole: true, help: "channels of a row's values in a group" },
  residual: {
    kind: 'number',
    default: 128,
    min: 32,
    max: 65536,
    whole: true,
    help: 'newest rows that are exact, a multiple of 32',
  },
} as const
type Options = OptionsOf<typeof options>

function formats(model: ModelDims, { bits, group }: Options): RowFormat[] {
  const b = bits === '2' ? 2 : 4
  return [
    {
      kind: 'codes',
      keys: { bits: b, groups: { by: 'channel' } },
      values: { bits: b, groups: { by: 'token', size: channelGroup(model, group) } },
    },
  ]
}

/** Whole blocks that have left the residual. */
const seal = (state: PolicyState, { residual }: Options): CompressionPlan =>
  storeOldest(state, 0, (computed) => wholeBlocks(computed - residual))

export const kivi = definePolicy({
  name: 'kivi',
  family: 'quantization',
  summary: 'keeps all rows, the older ones in 2 or 4 bits: keys by channel, values by row',
  paper: { title: 'KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache', year: 2024, arxiv: '2402.02750' },
  options,
  takesBudget: false,
  check: ({ residual }) => blockProblem('residual', residual),
  observes: () => ({}),
  formats,
  afterPrefill: (_, state, o) => seal(state, o),
  afterDecode: (_, state, o) => seal(state, o),
})
