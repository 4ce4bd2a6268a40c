/** Qwen 3: no biases, but an RMS norm over each query and key head before the rotation. */
import { defineArchitecture, need } from '../architecture.ts'
import { baseConfig } from '../config.ts'

export const qwen3 = defineArchitecture({
  name: 'qwen3',
  configure: (file) => baseConfig(file, 'neox'),

  layerWeights: ({ width: D, heads: H, kvHeads: Hkv, headDim: d, ffWidth: F }) => ({
    attnNorm: need('attn_norm.weight', D),
    q: need('attn_q.weight', D, d * H),
    k: need('attn_k.weight', D, d * Hkv),
    v: need('attn_v.weight', D, d * Hkv),
    o: need('attn_output.weight', d * H, D),
    qNorm: need('attn_q_norm.weight', d),
    kNorm: need('attn_k_norm.weight', d),
    ffnNorm: need('ffn_norm.weight', D),
    gate: need('ffn_gate.weight', D, F),
    up: need('ffn_up.weight', D, F),
    down: need('ffn_down.weight', F, D),
  }),

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
