/** All architectures by their GGUF name. */
import { KvasirError, nearest } from '../../contract/errors.ts'
import type { Architecture } from '../architecture.ts'
import { gemma2 } from './gemma2.ts'
import { gemma3 } from './gemma3.ts'
import { llama } from './llama.ts'
import { phi3 } from './phi3.ts'
import { qwen2 } from './qwen2.ts'
import { qwen3 } from './qwen3.ts'

export const ARCHITECTURES: ReadonlyMap<string, Architecture> = new Map(
  [llama, qwen2, qwen3, phi3, gemma2, gemma3].map((a) => [a.name, a]),
)

/** @throws KvasirError MODEL_UNSUPPORTED */
export function architectureNamed(name: string, file: string): Architecture {
  const found = ARCHITECTURES.get(name)
  if (found) return found
  const guess = nearest(name, ARCHITECTURES.keys())
  throw new KvasirError(
    'MODEL_UNSUPPORTED',
    `${file}: architecture "${name}" is not known here${guess ? ` (the nearest is ${guess})` : ''}; known are ` +
      [...ARCHITECTURES.keys()].join(', '),
    { file, architecture: name },
  )
}
