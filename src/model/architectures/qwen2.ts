/** Qwen 2 and 2.5: Llama's block, always with biases on q, k and v, and NEOX rotation. */
import { defineArchitecture, need } from '../architecture.ts'
import { baseConfig } from '../config.ts'
import { llamaBlock, llamaWeights } from './llama.ts'

export const qwen2 = defineArchitecture({
  name: 'qwen2',
  configure: (file) => baseConfig(file, 'neox'),
  layerWeights: (c) => ({
    ...llamaWeights(c),
    qBias: need('attn_q.bias', c.headDim * c.heads),
    kBias: need('attn_k.bias', c.headDim * c.kvHeads),
    vBias: need('attn_v.bias', c.headDim * c.kvHeads),
  }),
  block: (b, x, w) => llamaBlock(b, x, w),
})
