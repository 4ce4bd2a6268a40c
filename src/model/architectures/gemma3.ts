/**
 * Gemma 3 (text): Gemma 2's block with norms over query and key heads instead of soft caps, and windows in five of six
 * layers, which rotate with a base of their own.
 */
import { defineArchitecture } from '../architecture.ts'
import { baseConfig } from '../config.ts'
import { attentionWeights, headNormWeights, mlpWeights, postNormWeights } from './weights.ts'

/** Gemma 3 27B scales its scores by D / H instead of by the head size. */
const LAYERS_27B = 62

export const gemma3 = defineArchitecture({
  name: 'gemma3',
  configure(file) {
    const c = baseConfig(file, 'neox')
    const meta = file.metadata
    const size = meta.getNumber('gemma3.attention.sliding_window', 0)
    return {
      ...c,
      attentionScale: 1 / Math.sqrt(c.layers === LAYERS_27B ? c.width / c.heads : c.headDim),
      logitSoftcap: meta.getNumber('gemma3.final_logit_softcapping', 0),
      window: size
        ? { size, period: 6, ropeBase: meta.getNumber('gemma3.rope.freq_base_swa', 10000), ropeFrequencyScale: 1 }
        : null,
    }
  },

  layerWeights: (c) => ({
    ...attentionWeights(c),
    ...headNormWeights(c),
    ...mlpWeights(c),
    ...postNormWeights(c),
  }),

  embed: (b, x) => b.scale(x, Math.sqrt(b.config.width)),

  block(b, x, w) {
    const h = b.norm(x, w.attnNorm) //                              [D, T]
    const { q, k, v } = b.qkv(h, w) //                              [d, H, T], [d, Hkv, T], [d, Hkv, T]
    const scaled = b.scale(b.rope(b.norm(q, w.qNorm)), b.config.attentionScale) // [d, H, T]
    const a = b.linear(b.attend(scaled, b.rope(b.norm(k, w.kNorm)), v, 1), w.o) // [D, T]
    const [attended, residual] = b.outputRowsOnly(a, x)
    const y = b.add(b.norm(attended, w.attnPostNorm), residual)
    const m = b.geglu(b.norm(y, w.ffnNorm), w)
    return b.add(b.norm(m, w.ffnPostNorm), y)
  },
})
