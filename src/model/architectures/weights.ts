/** Weights that most architectures have under the same names. */
import { need } from '../architecture.ts'
import type { ModelConfig } from '../config.ts'

/** Norm, query, key, value and output projections. */
export const attentionWeights = ({ width: D, heads: H, kvHeads: Hkv, headDim: d }: ModelConfig) => ({
  attnNorm: need('attn_norm.weight', D),
  q: need('attn_q.weight', D, d * H),
  k: need('attn_k.weight', D, d * Hkv),
  v: need('attn_v.weight', D, d * Hkv),
  o: need('attn_output.weight', d * H, D),
})

/** Norms over each query and key head. */
export const headNormWeights = ({ headDim: d }: ModelConfig) => ({
  qNorm: need('attn_q_norm.weight', d),
  kNorm: need('attn_k_norm.weight', d),
})

/** Norm and the three matrices of a gated MLP. */
export const mlpWeights = ({ width: D, ffWidth: F }: ModelConfig) => ({
  ffnNorm: need('ffn_norm.weight', D),
  gate: need('ffn_gate.weight', D, F),
  up: need('ffn_up.weight', D, F),
  down: need('ffn_down.weight', F, D),
})

/** Norms behind attention and MLP. */
export const postNormWeights = ({ width: D }: ModelConfig) => ({
  attnPostNorm: need('post_attention_norm.weight', D),
  ffnPostNorm: need('post_ffw_norm.weight', D),
})
