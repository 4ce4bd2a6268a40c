/** A policy at work on made-up attention, as the engine runs it. */
import type { Observation } from '../contract/observation.ts'
import type { Calibration, CompressionPlan, ModelDims, PolicyState } from '../contract/policy.ts'
import {
  type Attention,
  append,
  asComputed,
  attention,
  type Cache,
  carryOut,
  DIMS,
  type Formats,
  fullCache,
  kept,
  observe,
  observeDecode,
  stateOf,
  storeRows,
  total,
} from './attention.fixture.ts'
import { type ChosenPolicy, choosePolicy } from './index.ts'

/** Made up, of the policy that needs one. */
export function calibrationFor(policy: Calibration['policy'], { layers, heads, kvHeads }: ModelDims): Calibration {
  const depth = Array.from({ length: layers }, (_, l) => l + 1)
  const perHead = (of: (index: number) => number) =>
    depth.map((_, l) => Array.from({ length: kvHeads }, (_, h) => of(l * kvHeads + h)))
  switch (policy) {
    case 'compresskv':
      // Heads in falling order of index, shares that grow with depth.
      return {
        policy,
        heads: depth.map(() => Array.from({ length: heads }, (_, h) => heads - 1 - h)),
        layerShares: depth.map((d) => d / total(depth)),
      }
    case 'razorattention':
      // The first heads induce, the last ones echo.
      return { policy, echo: perHead((i) => i / 100), induction: perHead((i) => 1 - i / 100) }
    case 'uncomp':
      return { policy, layerEntropies: depth.map((d) => 5 / d), headVotes: perHead((i) => (i % 3) / 2) }
    default:
      return policy satisfies never
  }
}

export interface Setting {
  readonly dims?: ModelDims
  readonly n: number
  readonly budget: number
  readonly seed?: number
}

/** A cache, and what the policy remembers of it. */
export interface Held {
  readonly cache: Cache
  /** Absent: all rows are stored as they were computed. */
  readonly formats?: Formats
  readonly memory?: unknown
}

export interface Prefill extends Held {
  /** Empty for a policy that looks at nothing. */
  readonly P: Attention
}

const isBlind = ({ definition, options }: ChosenPolicy) => Object.keys(definition.observes(options)).length === 0

/** What the policy gets to know of a cache. */
export function stateFor(
  { definition, options }: ChosenPolicy,
  { cache, formats, memory }: Held,
  { dims = DIMS, budget, seed = 1 }: Omit<Setting, 'n'>,
): PolicyState {
  const policy = definition.calibration?.(options)
  return stateOf(dims, cache, budget, {
    seed,
    ...(formats ? { formats: (layer, kvHead) => formats[layer]![kvHead]! } : {}),
    ...(policy ? { calibration: calibrationFor(policy, dims) } : {}),
    ...(memory === undefined ? {} : { memory }),
  })
}

/** The plan is carried out. @param held before it, in the memory of a model of these sizes */
export function heldAfter(
  { definition, options }: ChosenPolicy,
  held: Held,
  plan: CompressionPlan,
  dims: ModelDims,
): Held {
  const known = definition.formats?.(dims, options).length ?? 0
  return {
    cache: carryOut(held.cache, plan),
    formats: storeRows(held.formats ?? asComputed(held.cache), plan, known),
    memory: 'memory' in plan ? plan.memory : held.memory,
  }
}

/** A row is there, as it was computed. */
const grow = ({ cache, formats, memory }: Held, position: number): Held => ({
  cache: append(cache, position),
  formats: (formats ?? asComputed(cache)).map((heads) => heads.map((list) => Uint8Array.from([...list, 0]))),
  memory,
})

/** Rows of a head that are stored so: indices. @param stored as {@link PolicyState.formats} says it */
export const rowsStoredIn = ({ cache, formats }: Held, stored: number, layer: number, kvHead: number): number[] =>
  Array.from(cache[layer]![kvHead]!.keys()).filter((j) => (formats?.[layer]?.[kvHead]?.[j] ?? 0) === stored)

/** The cache behind the prompt. @param each called after each chunk, before its plan, where the prompt is read in chunks */
export function prefill(spec: string, setting: Setting, each?: (cache: Cache) => void): Prefill {
  const chosen = choosePolicy(spec)
  const { definition, options } = chosen
  const { dims = DIMS, n, budget, seed = 1 } = setting
  const P = isBlind(chosen) ? [] : attention(dims, n, seed)
  const chunk = definition.chunkRows?.({ model: dims, rows: n, budget, contextLength: 4096 }, options) ?? null
  const held = chunk === null ? { cache: fullCache(dims, n) } : readChunks(chosen, setting, chunk, each)
  const seen = isBlind(chosen) ? {} : observe(P, dims, definition.observes(options))
  return {
    P,
    ...heldAfter(chosen, held, definition.afterPrefill(seen, stateFor(chosen, held, setting), options), dims),
  }
}

function readChunks(chosen: ChosenPolicy, setting: Setting, chunk: number, each?: (cache: Cache) => void): Held {
  let held: Held = { cache: fullCache(setting.dims ?? DIMS, 0) }
  for (let from = 0; from < setting.n; from += chunk) {
    for (let position = from; position < Math.min(from + chunk, setting.n); position++) held = grow(held, position)
    each?.(held.cache)
    const plan = chosen.definition.afterChunk!(stateFor(chosen, held, setting), chosen.options)
    held = heldAfter(chosen, held, plan, setting.dims ?? DIMS)
  }
  return held
}

/** Rows that stay, `[layer][kvHead]`. */
export const keptBy = (spec: string, setting: Setting): number[][][] => kept(prefill(spec, setting).cache)

/** A row of the answer is there, and what the policy makes of it. @param seen default: by chance */
export function answerPlan(
  chosen: ChosenPolicy,
  held: Held,
  setting: Omit<Setting, 'n'>,
  seen?: Observation,
): { readonly grown: Held; readonly plan: CompressionPlan } {
  const { definition, options } = chosen
  const position = 1 + Math.max(...held.cache.flat().map((p) => p.at(-1)!))
  const grown = grow(held, position)
  if (!definition.afterDecode) return { grown, plan: { kind: 'keep-all' } }
  const { dims = DIMS, seed = 1 } = setting
  const observation = seen ?? (isBlind(chosen) ? {} : observeDecode(dims, grown.cache, seed + position))
  return { grown, plan: definition.afterDecode(observation, stateFor(chosen, grown, setting), options) }
}

/** One row of the answer. */
export function answerStep(chosen: ChosenPolicy, held: Held, setting: Omit<Setting, 'n'>, seen?: Observation): Held {
  const { grown, plan } = answerPlan(chosen, held, setting, seen)
  return heldAfter(chosen, grown, plan, setting.dims ?? DIMS)
}

/** The same for policies that remember nothing. */
export const decodeStep = (
  chosen: ChosenPolicy,
  cache: Cache,
  setting: Omit<Setting, 'n'>,
  seen?: Observation,
): Cache => answerStep(chosen, { cache }, setting, seen).cache
