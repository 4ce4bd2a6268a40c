/** Options of policies that look at a prompt's last queries. */
import type { OptionSpecs } from '../../contract/policy.ts'
import type { Pooling } from './scores.ts'

/** @param most fewer where queries are compared with each other */
export const windowOption = (rows: number, min = 1, most = 1024) =>
  ({
    window: {
      kind: 'number',
      default: rows,
      min,
      max: most,
      whole: true,
      help: 'last queries of the prompt that vote; their own rows stay, at most half the budget',
    },
  }) as const satisfies OptionSpecs

export const poolOption = (kernel: number, pool: Pooling) =>
  ({
    kernel: {
      kind: 'number',
      default: kernel,
      min: 1,
      max: 255,
      whole: true,
      help: 'rows that are pooled, odd; 1: none',
    },
    pool: { kind: 'choice', default: pool, choices: ['avg', 'max'], help: 'how they are pooled' },
  }) as const satisfies OptionSpecs

/** For `check`. */
export const oddKernel = ({ kernel }: { readonly kernel: number }): string | null =>
  kernel % 2 === 1 ? null : `'kernel' must be odd, so that a row stands in its middle; got ${kernel}`
