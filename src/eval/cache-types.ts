/** Quantised caches as treatments, beside policies: `types?k=q8_0&v=q4_0`. */
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import { KvasirError, nearest } from '../contract/errors.ts'
import type { CacheTypesRequest } from '../engine/request.ts'
import { splitSpec } from '../policies/options.ts'

const NAME = 'types'

export const isTypes = (spec: string): boolean => splitSpec(spec).name === NAME

/**
 * What a request asks for; keys or values that are not named are cached in the engine's type.
 * @throws KvasirError INVALID_ARGUMENT for anything but `k` and `v`, and for types that there are not
 */
export function readTypes(spec: string): CacheTypesRequest {
  const given = new Map(splitSpec(spec).given)
  const take = (option: 'k' | 'v'): CacheType | undefined => {
    const type = given.get(option)
    given.delete(option)
    if (type === undefined) return undefined
    const known = CACHE_TYPES.find((t) => t === type)
    if (known) return known
    const guess = nearest(type, CACHE_TYPES)
    throw invalid(
      `'${spec}': ${option} must be one of ${CACHE_TYPES.join(', ')}${guess ? `. Did you mean '${guess}'?` : ''}`,
    )
  }
  const [cacheTypeK, cacheTypeV] = [take('k'), take('v')]
  const [unknown] = given.keys()
  if (unknown !== undefined) throw invalid(`'${spec}': '${unknown}' is neither k nor v. Write ${NAME}?k=q8_0&v=q8_0`)
  if (!cacheTypeK && !cacheTypeV) throw invalid(`'${spec}' names no type. Write ${NAME}?k=q8_0&v=q8_0`)
  return { ...(cacheTypeK ? { cacheTypeK } : {}), ...(cacheTypeV ? { cacheTypeV } : {}) }
}

/** One text for what is the same. @throws KvasirError INVALID_ARGUMENT */
export function typesText(spec: string): string {
  const { cacheTypeK, cacheTypeV } = readTypes(spec)
  const options = [...(cacheTypeK ? [`k=${cacheTypeK}`] : []), ...(cacheTypeV ? [`v=${cacheTypeV}`] : [])]
  return `${NAME}?${options.join('&')}`
}

const invalid = (text: string) => new KvasirError('INVALID_ARGUMENT', text)
