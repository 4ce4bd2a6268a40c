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
    const q = b.rope(b.norm(b.heads(b.linear(h, w.q)), w.qNorm)) // [d, H, T]
    const k = b.rope(b.norm(b.heads(b.linear(h, w.k)), w.kNorm)) // [d, Hkv, T]
    const v = b.heads(b.linear(h, w.v)) //                          [d, Hkv, T]
    const a = b.linear(b.attend(q, k, v), w.o) //                   [D, T]
    const [attended, residual] = b.outputRowsOnly(a, x)
    const y = b.add(attended, residual)
    return b.add(b.swiglu(b.norm(y, w.ffnNorm), w.gate, w.up, w.down), y)
  },
})
