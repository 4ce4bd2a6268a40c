/** How many pages the store of an engine has. */
import { arenaBytes, PAGE_CELLS, pageBytes } from '../cache/arena.ts'
import type { StoreShape } from '../cache/memory.ts'
import { KvasirError, showBytes } from '../contract/errors.ts'
import { storeShape } from '../executor/store-shape.ts'
import type { Device } from '../ggml/device.ts'
import type { ModelConfig } from '../model/config.ts'
import { freeHostBytes } from '../model/memory.ts'
import { type CompleteOptions, DEFAULT_CONTEXTS, DEFAULT_SHARE } from './options.ts'

/** The store that `kvMemory` pays for. @throws KvasirError KV_BUDGET when that is less than one page's worth */
export function planStore(config: ModelConfig, o: CompleteOptions, contextLength: number, device: Device): StoreShape {
  const shapeOf = (cells: number) => storeShape(config, { ...o, cells }, device)
  const perPage = pageBytes({ ...shapeOf(1), ...shapeOf(1).arenas[0]! })
  const step = shapeOf(1).arenas[0]!.pages
  const context = arenaBytes({ ...shapeOf(contextLength), ...shapeOf(contextLength).arenas[0]! })
  const free = device.kind === 'cpu' ? freeHostBytes() : device.memory().free
  // More than an arena's indices reach is no default.
  const most = Math.floor((2 ** 31 - 1) / (config.headDim * config.kvHeads * PAGE_CELLS)) * perPage
  const budget = o.kvMemory ?? Math.max(context, Math.min(DEFAULT_CONTEXTS * context, free * DEFAULT_SHARE, most))
  const pages = Math.floor((budget - o.hostCacheBytes) / perPage / step) * step
  if (pages < step)
    throw new KvasirError(
      'KV_BUDGET',
      `kvMemory of ${showBytes(budget)}${o.hostCacheBytes ? `, less ${showBytes(o.hostCacheBytes)} for hostCacheBytes,` : ''} ` +
        `does not hold the ${showBytes(step * perPage)} that ${step} pages take. Give more of it`,
      { budgetBytes: budget, neededBytes: step * perPage },
    )
  const shape = shapeOf(1)
  return { ...shape, arenas: [{ ...shape.arenas[0]!, pages }] }
}
