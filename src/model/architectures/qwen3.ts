/** Qwen 3: no biases, but an RMS norm over each query and key head before the rotation. */
import { defineArchitecture } from '../architecture.ts'
import { baseConfig } from '../config.ts'
import { attentionWeights, headNormWeights, mlpWeights } from './weights.ts'

export const qwen3 = defineArchitecture({
  name: 'qwen3',
  configure: (file) => baseConfig(file, 'neox'),

  layerWeights: (c) => ({ ...attentionWeights(c), ...headNormWeights(c), ...mlpWeights(c) }),

  block(b, x, w) {
    const h = b.norm(x, w.attnNorm) //                              [D, T]
    const { q, k, v } = b.qkv(h, w) //                              [d, H, T], [d, Hkv, T], [d, Hkv, T]
    const rotated = { q: b.rope(b.norm(q, w.qNorm)), k: b.rope(b.norm(k, w.kNorm)) }
    const a = b.linear(b.attend(rotated.q, rotated.k, v), w.o) //   [D, T]
    const [attended, residual] = b.outputRowsOnly(a, x)
    const y = b.add(attended, residual)
    return b.add(b.swiglu(b.norm(y, w.ffnNorm), w), y)
  },
})
