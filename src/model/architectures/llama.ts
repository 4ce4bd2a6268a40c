/** Llama 1 to 3, Mistral, and everything else that GGUF calls `llama`, without experts. Llama 3's RoPE factors included. */

import type { Tensor } from '../../ggml/tensor.ts'
import { defineArchitecture, may, need, type TensorsOf } from '../architecture.ts'
import type { Build } from '../build.ts'
import { baseConfig, type ModelConfig } from '../config.ts'

export const llamaWeights = ({ width: D, heads: H, kvHeads: Hkv, headDim: d, ffWidth: F }: ModelConfig) => ({
  attnNorm: need('attn_norm.weight', D),
  q: need('attn_q.weight', D, d * H),
  k: need('attn_k.weight', D, d * Hkv),
  v: need('attn_v.weight', D, d * Hkv),
  o: need('attn_output.weight', d * H, D),
  qBias: may('attn_q.bias', d * H),
  kBias: may('attn_k.bias', d * Hkv),
  vBias: may('attn_v.bias', d * Hkv),
  oBias: may('attn_output.bias', D),
  ffnNorm: need('ffn_norm.weight', D),
  gate: need('ffn_gate.weight', D, F),
  up: need('ffn_up.weight', D, F),
  down: need('ffn_down.weight', F, D),
})

export function llamaBlock(b: Build, x: Tensor, w: TensorsOf<ReturnType<typeof llamaWeights>>): Tensor {
  const h = b.norm(x, w.attnNorm) //                              [D, T]
  const q = b.rope(b.heads(b.linear(h, w.q, w.qBias))) //         [d, H, T]
  const k = b.rope(b.heads(b.linear(h, w.k, w.kBias))) //         [d, Hkv, T]
  const v = b.heads(b.linear(h, w.v, w.vBias)) //                 [d, Hkv, T]
  const a = b.linear(b.attend(q, k, v), w.o, w.oBias) //          [D, T]
  const [attended, residual] = b.outputRowsOnly(a, x)
  const y = b.add(attended, residual)
  return b.add(b.swiglu(b.norm(y, w.ffnNorm), w.gate, w.up, w.down), y)
}

export const llama = defineArchitecture({
  name: 'llama',
  configure: (file) => baseConfig(file, 'norm'),
  layerWeights: llamaWeights,
  block: llamaBlock,
})
