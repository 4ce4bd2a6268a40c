/**
 * StreamingLLM: the first rows take the attention that has nowhere else to go; with them a sliding window goes on for ever.
 *
 * Paper    Xiao et al. 2023, arXiv 2309.17453.  Code  mit-han-lab/streaming-llm, kv_cache.py.  Spec  baselines.md, 3
 * Keeps    the first `sinks` rows and the last budget - sinks, after the prompt and after each row of the answer
 * Differs  positions stay what they were (kvpress's StreamingLLMPress without key rotation), where the paper numbers the cached rows
 *          0, 1, 2, ... at each step. It is the same until the first row is dropped; behind the trained context only the paper's
 *          way goes on
 * Exact    if budget >= n
 */
import { definePolicy } from '../define.ts'
import { keepEnds } from '../parts/select.ts'

export const streamingLlm = definePolicy({
  name: 'streaming-llm',
  family: 'eviction',
  summary: 'keeps the first few rows and the newest',
  paper: { title: 'Efficient Streaming Language Models with Attention Sinks', year: 2023, arxiv: '2309.17453' },
  options: {
    sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay' },
  },
  observes: () => ({}),
  afterPrefill: (_, state, { sinks }) => keepEnds(state, sinks),
  afterDecode: (_, state, { sinks }) => keepEnds(state, sinks),
})
