/** Which lowering serves a step. */
import { flash, TILE_ROWS } from './flash.ts'
import { grouped } from './grouped.ts'
import type { Lowering, LoweringName } from './lowering.ts'

/**
 * `auto`: from {@link TILE_ROWS} rows on the fused op, whose tiles are f32; below, where it would sum f16 values in f16, the
 * grouped products. Values that are not stored transposed leave only the fused op.
 */
export function chooseLowering(name: LoweringName, rows: number, valuesTransposed: boolean): Lowering {
  if (!valuesTransposed || name === 'flash') return flash
  if (name === 'grouped') return grouped
  return rows >= TILE_ROWS ? flash : grouped
}
