/** Which lowering serves a step, and how values must lie for it. */
import type { CacheType } from '../../cache/arena.ts'
import type { Device } from '../../ggml/device.ts'
import { isQuantized } from '../../ggml/types.ts'
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

/**
 * Whether values are stored transposed, for the grouped products. With `auto` only where those are the more exact: beside bf16
 * values ggml rounds the attention weights to bf16, which the fused op does not. Blocks of quantised types lie along a row and
 * cannot be turned. Other devices than the CPU have fused kernels of their own.
 */
export function wantsTransposed(name: LoweringName, type: CacheType, device: Device): boolean {
  if (name === 'flash' || device.kind !== 'cpu' || isQuantized(type)) return false
  return name === 'grouped' || type === 'f16' || type === 'f32'
}
