/**
 * Phi 3, 3.5 and 4-mini: q, k and v in one matrix, gate and up in one matrix, rotation of part of a head, LongRoPE. The
 * queries are scaled before attention. The sliding window that some files name stays off, as in llama.cpp.
 */
import { defineArchitecture, need } from '../architecture.ts'
import { baseConfig } from '../config.ts'

export const phi3 = defineArchitecture({
  name: 'phi3',
  configure: (file) => baseConfig(file, 'neox'),

  layerWeights: ({ width: D, heads: H, kvHeads: Hkv, headDim: d, ffWidth: F }) => ({
    attnNorm: need('attn_norm.weight', D),
    qkv: need('attn_qkv.weight', D, d * (H + 2 * Hkv)),
    o: need('attn_output.weight', d * H, D),
    ffnNorm: need('ffn_norm.weight', D),
    gateUp: need('ffn_up.weight', D, 2 * F),
    down: need('ffn_down.weight', F, D),
  }),

  block(b, x, w) {
    const { q, k, v } = b.qkv(b.norm(x, w.attnNorm), w) //          [d, H, T], [d, Hkv, T], [d, Hkv, T]
    const scaled = b.scale(b.rope(q), b.config.attentionScale) //   [d, H, T]
    const a = b.linear(b.attend(scaled, b.rope(k), v, 1), w.o) //   [D, T]
    const [attended, residual] = b.outputRowsOnly(a, x)
    const y = b.add(attended, residual)
    return b.add(y, b.swiglu(b.norm(y, w.ffnNorm), w))
  },
})
