/** What policies answer. Plans are plain data: they can be logged, replayed, sent, drawn. */
import type { Range } from './units.ts'

/**
 * Which cached rows attention reads. The executor's lowering decides *how* they are read.
 */
export type AttentionPlan =
  /** All heads of all layers read one range of cells; the mask hides what a row may not see. */
  { readonly kind: 'dense'; readonly cells: Range }
