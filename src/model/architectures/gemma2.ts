/**
 * Gemma 2: embeddings scaled by sqrt(D), norms before and behind attention and MLP, GELU, soft-capped scores and logits,
 * every other layer with a sliding window.
 */
import { defineArchitecture } from '../architecture.ts'
import { baseConfig } from '../config.ts'
import { attentionWeights, mlpWeights, postNormWeights } from './weights.ts'

/** Gemma 2 27B scales its scores by D / H instead of by the head size. */
const LAYERS_27B = 46

export const gemma2 = defineArchitecture({
  name: 'gemma2',
  configure(file) {
    const c = baseConfig(file, 'neox')
    const meta = file.metadata
    return {
      ...c,
      attentionScale: 1 / Math.sqrt(c.layers === LAYERS_27B ? c.width / c.heads : c.headDim),
      attentionSoftcap: meta.getNumber('gemma2.attn_logit_softcapping', 50),
      logitSoftcap: meta.getNumber('gemma2.final_logit_softcapping', 30),
      window: {
        size: meta.getNumber('gemma2.attention.sliding_window', 4096),
        period: 2,
        ropeBase: c.rope.base,
        ropeFrequencyScale: c.rope.frequencyScale,
      },
    }
  },

  layerWeights: (c) => ({ ...attentionWeights(c), ...mlpWeights(c), ...postNormWeights(c) }),

  embed: (b, x) => b.scale(x, Math.sqrt(b.config.width)),

  block(b, x, w) {
    const h = b.norm(x, w.attnNorm) //                              [D, T]
    const { q, k, v } = b.qkv(h, w) //                              [d, H, T], [d, Hkv, T], [d, Hkv, T]
    const scaled = b.scale(b.rope(q), b.config.attentionScale) //   [d, H, T]
    const a = b.linear(b.attend(scaled, b.rope(k), v, 1), w.o) //   [D, T]
    const [attended, residual] = b.outputRowsOnly(a, x)
    const y = b.add(b.norm(attended, w.attnPostNorm), residual)
    const m = b.geglu(b.norm(y, w.ffnNorm), w)
    return b.add(b.norm(m, w.ffnPostNorm), y)
  },
})
