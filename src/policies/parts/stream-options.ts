/** Options of policies that hold a cache of a fixed size against a text without end. */
import type { CompressionPlan, OptionSpecs, PromptAhead } from '../../contract/policy.ts'

export interface StreamOptions {
  readonly positions: 'slots' | 'kept'
  readonly prefill: 'whole' | 'stream'
  readonly chunk: number
}

export const streamOptions = () =>
  ({
    positions: {
      kind: 'choice',
      default: 'slots',
      choices: ['slots', 'kept'],
      help: 'slots: distances are counted in cached rows, so that a text may go on for ever; kept: as they were',
    },
    prefill: {
      kind: 'choice',
      default: 'whole',
      choices: ['whole', 'stream'],
      help: 'whole: the prompt is read, then cut; stream: it is cut after each chunk, and never held',
    },
    chunk: {
      kind: 'number',
      default: 0,
      min: 0,
      max: 4096,
      whole: true,
      help: 'with prefill=stream: rows that are read between two cuts; 0: a quarter of the budget, 64 at most',
    },
  }) as const satisfies OptionSpecs

/** For `isEndless`. */
export const isEndless = ({ positions }: Pick<StreamOptions, 'positions'>): boolean => positions === 'slots'

/** For `chunkRows`. A prompt that fits is read as a whole. What is dropped when depends on the chunk, so budget and options alone decide. */
export function streamChunk({ rows, budget }: PromptAhead, { prefill, chunk }: StreamOptions): number | null {
  if (prefill === 'whole' || rows <= budget) return null
  return chunk || Math.max(1, Math.min(64, Math.floor(budget / 4)))
}

/** The plan, with its rows side by side where the options want that. */
export function placed(plan: CompressionPlan, { positions }: Pick<StreamOptions, 'positions'>): CompressionPlan {
  return plan.kind === 'keep' && positions === 'slots' ? { ...plan, placement: 'slots' } : plan
}
