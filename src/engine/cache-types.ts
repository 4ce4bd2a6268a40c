/** The types in which a request wants its keys and values cached, and the arena of the store that has them. */
import { Arena, CACHE_TYPES, pageBytes } from '../cache/arena.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError, nearest } from '../contract/errors.ts'
import type { LoweringName } from '../executor/lower/lowering.ts'
import { storeShape } from '../executor/store-shape.ts'
import { GGML_TYPES } from '../ggml/types.ts'
import type { ModelConfig } from '../model/config.ts'
import type { CacheTypesRequest } from './request.ts'

/** What decides how an arena is laid out. */
export interface CacheTypesTools {
  readonly store: KvStore
  readonly model: ModelConfig
  readonly lowering: LoweringName
}

/**
 * The arena that a request's rows are stored in, made when it is first asked for. It has the layout that an engine loaded with
 * these types would have, so that answers are the same.
 * @returns 0 where the request asks for the engine's own types, or for none
 * @throws KvasirError INVALID_ARGUMENT for types that there are not or that do not fit the model's heads, NOT_SUPPORTED on other
 *   devices than the CPU, OUT_OF_MEMORY
 */
export function arenaOf(request: CacheTypesRequest, { store, model, lowering }: CacheTypesTools): number {
  const own = store.home.shape
  const { cacheTypeK: keyType = own.keyType, cacheTypeV: valueType = own.valueType } = request
  checkType('cacheTypeK', keyType, model.headDim)
  checkType('cacheTypeV', valueType, model.headDim)
  if (keyType === own.keyType && valueType === own.valueType) return 0
  if (store.device.kind !== 'cpu')
    throw new KvasirError(
      'NOT_SUPPORTED',
      `a request can choose its own cache types on the CPU only, and this engine runs on ${store.device.name}. Leave cacheTypeK and ` +
        'cacheTypeV out, or load the model with keyType and valueType (--cache-type-k, --cache-type-v)',
    )
  return store.borrower(`types ${keyType} ${valueType}`, () => {
    const shape = storeShape(model, { keyType, valueType, lowering, cells: 1 }, store.device)
    const format = { ...shape, ...shape.arenas[0]! }
    return new Arena({ ...format, pages: store.pagesOfAll(pageBytes(format)) }, store.device)
  })
}

function checkType(field: 'cacheTypeK' | 'cacheTypeV', type: string, headDim: number): void {
  const known = CACHE_TYPES.find((t) => t === type)
  const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `${field} is "${type}"; ${what}`, { field })
  if (!known) {
    const guess = nearest(String(type), CACHE_TYPES)
    throw bad(`it must be one of ${CACHE_TYPES.join(', ')}${guess ? `. Did you mean "${guess}"?` : ''}`)
  }
  const { block } = GGML_TYPES[known]
  if (headDim % block)
    throw bad(`it needs heads of a multiple of ${block} numbers, and this model's have ${headDim}. f16 fits all models`)
}
