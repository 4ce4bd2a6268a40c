/** The store that fits a model and the lowering that will read it. */
import { type CacheType, pagesFor } from '../cache/arena.ts'
import type { StoreShape } from '../cache/memory.ts'
import type { Device } from '../ggml/device.ts'
import type { ModelConfig } from '../model/config.ts'
import { wantsTransposed } from './lower/choose.ts'
import type { LoweringName } from './lower/lowering.ts'

export interface StoreOptions {
  /** Cells, rounded up to whole pages. */
  readonly cells: number
  readonly keyType: CacheType
  readonly valueType: CacheType
  readonly lowering: LoweringName
}

export function storeShape(config: ModelConfig, o: StoreOptions, device: Device): StoreShape {
  const { layers, headDim, kvHeads } = config
  const valuesTransposed = wantsTransposed(o.lowering, o.valueType, device)
  const arena = { keyType: o.keyType, valueType: o.valueType, valuesTransposed, pages: pagesFor(o.cells) }
  return { layers, headDim, kvHeads, arenas: [arena] }
}
