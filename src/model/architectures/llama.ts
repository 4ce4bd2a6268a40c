/** Llama 1 to 3, Mistral, and everything else that GGUF calls `llama`, without experts. Llama 3's RoPE factors included. */

import type { Tensor } from '../../ggml/tensor.ts'
import { defineArchitecture, may, type TensorsOf } from '../architecture.ts'
import type { Build } from '../build.ts'
import { baseConfig, type ModelConfig } from '../config.ts'
import { attentionWeights, mlpWeights } from './weights.ts'

export const llamaWeights = (c: ModelConfig) => ({
  ...attentionWeights(c),
  qBias: may('attn_q.bias', c.headDim * c.heads),
  kBias: may('attn_k.bias', c.headDim * c.kvHeads),
  vBias: may('attn_v.bias', c.headDim * c.kvHeads),
  oBias: may('attn_output.bias', c.width),
  ...mlpWeights(c),
})

export function llamaBlock(b: Build, x: Tensor, w: TensorsOf<ReturnType<typeof llamaWeights>>): Tensor {
  const h = b.norm(x, w.attnNorm) //                              [D, T]
  const { q, k, v } = b.rotatedQkv(h, w) //                       [d, H, T], [d, Hkv, T], [d, Hkv, T]
  const a = b.linear(b.attend(q, k, v), w.o, w.oBias) //          [D, T]
  const [attended, residual] = b.outputRowsOnly(a, x)
  const y = b.add(attended, residual)
  return b.add(b.swiglu(b.norm(y, w.ffnNorm), w), y)
}

export const llama = defineArchitecture({
  name: 'llama',
  configure: (file) => baseConfig(file, 'norm'),
  layerWeights: llamaWeights,
  block: llamaBlock,
})
