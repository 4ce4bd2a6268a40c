/**
 * StreamingLLM: the first rows take the attention that has nowhere else to go; with them a sliding window goes on for ever.
 *
 * Paper    Xiao et al. 2023, arXiv 2309.17453.  Code  mit-han-lab/streaming-llm, kv_cache.py.  Spec  baselines.md, 3
 * Keeps    the first `sinks` rows and the last budget - sinks, after the prompt and after each row of the answer
 * Distance counted in cached rows, 0, 1, 2, ... anew whenever a row is dropped; with positions=kept as in the text (kvpress's
 *          StreamingLLMPress), which ends where the trained context does
 * Prompt   computed in full, then cut, as with the policies that it is compared to; with prefill=stream cut after each chunk of
 *          it, as the authors do row by row: no more than budget + chunk rows are ever held
 * Exact    if budget >= n
 */
import type { OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { keepEnds } from '../parts/select.ts'
import { isEndless, placed, streamChunk, streamOptions } from '../parts/stream-options.ts'

const options = {
  sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay' },
  ...streamOptions(),
} as const

const cut = (state: PolicyState, o: OptionsOf<typeof options>) => placed(keepEnds(state, o.sinks), o)

export const streamingLlm = definePolicy({
  name: 'streaming-llm',
  family: 'eviction',
  summary: 'keeps the first few rows and the newest',
  paper: { title: 'Efficient Streaming Language Models with Attention Sinks', year: 2023, arxiv: '2309.17453' },
  options,
  observes: () => ({}),
  isEndless,
  chunkRows: streamChunk,
  afterChunk: cut,
  afterPrefill: (_, state, o) => cut(state, o),
  afterDecode: (_, state, o) => cut(state, o),
})
