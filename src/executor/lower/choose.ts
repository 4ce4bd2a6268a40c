/** Which lowering serves a step, and how values must lie for it. */
import type { CacheType } from '../../cache/arena.ts'
import type { Device } from '../../ggml/device.ts'
import { isQuantized } from '../../ggml/types.ts'
import { flash, TILE_ROWS, tiled } from './flash.ts'
import { grouped } from './grouped.ts'
import type { Lowering, LoweringName } from './lowering.ts'

/** Query rows of a KV head from which on the grouped products read row-major values faster than the fused op. */
const FEWEST_GROUPED = 4

/**
 * `auto`: from {@link TILE_ROWS} rows on the fused op, whose tiles are f32; below, where it would sum f16 values in f16 and unpack
 * quantised ones once for each query head, the grouped products.
 * @param group query heads of a KV head
 */
export function chooseLowering(name: LoweringName, rows: number, group: number, valuesTransposed: boolean): Lowering {
  if (name !== 'auto') return name === 'flash' ? flash : grouped
  if (rows >= TILE_ROWS) return tiled
  return valuesTransposed || rows * group >= FEWEST_GROUPED ? grouped : flash
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
