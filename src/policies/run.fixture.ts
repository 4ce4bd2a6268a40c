/** A policy at work on made-up attention, as the engine runs it. */
import type { Observation } from '../contract/observation.ts'
import type { Calibration, ModelDims, PolicyState } from '../contract/policy.ts'
import {
  type Attention,
  append,
  attention,
  type Cache,
  carryOut,
  DIMS,
  fullCache,
  kept,
  observe,
  observeDecode,
  stateOf,
  total,
} from './attention.fixture.ts'
import { type ChosenPolicy, choosePolicy } from './index.ts'

/** Heads in falling order of index, shares that grow with depth. */
export function calibrationFor({ layers, heads }: ModelDims): Calibration {
  const depth = Array.from({ length: layers }, (_, l) => l + 1)
  return {
    policy: 'compresskv',
    heads: depth.map(() => Array.from({ length: heads }, (_, h) => heads - 1 - h)),
    layerShares: depth.map((d) => d / total(depth)),
  }
}

export interface Setting {
  readonly dims?: ModelDims
  readonly n: number
  readonly budget: number
  readonly seed?: number
}

export interface Prefill {
  readonly P: Attention
  readonly cache: Cache
}

const stateFor = (dims: ModelDims, cache: Cache, budget: number, seed: number): PolicyState =>
  stateOf(dims, cache, budget, { seed, calibration: calibrationFor(dims) })

/** The cache behind the prompt. */
export function prefill(spec: string, { dims = DIMS, n, budget, seed = 1 }: Setting): Prefill {
  const { definition, options } = choosePolicy(spec)
  const P = attention(dims, n, seed)
  const cache = fullCache(dims, n)
  const plan = definition.afterPrefill(
    observe(P, dims, definition.observes(options)),
    stateFor(dims, cache, budget, seed),
    options,
  )
  return { P, cache: carryOut(cache, plan) }
}

/** Rows that stay, `[layer][kvHead]`. */
export const keptBy = (spec: string, setting: Setting): number[][][] => kept(prefill(spec, setting).cache)

/** One row of the answer. @param seen default: by chance */
export function decodeStep(
  { definition, options }: ChosenPolicy,
  cache: Cache,
  { dims = DIMS, budget, seed = 1 }: Omit<Setting, 'n'>,
  seen?: Observation,
): Cache {
  const position = 1 + Math.max(...cache.flat().map((p) => p.at(-1)!))
  const grown = append(cache, position)
  if (!definition.afterDecode) return grown
  const observation = seen ?? observeDecode(dims, grown, seed + position)
  return carryOut(grown, definition.afterDecode(observation, stateFor(dims, grown, budget, seed), options))
}
