/**
 * The options by which any policy that scores rows takes any division of the budget: `layers` (who gets how much of the
 * depth), then `heads` (who gets how much of a layer). `snapkv?layers=pyramid` is PyramidKV, `h2o?heads=ada` is H2O under Ada-KV.
 */
import type { Observation, ObservationNeeds, Statistic } from '../../contract/observation.ts'
import type { OptionSpecs, PolicyState } from '../../contract/policy.ts'
import { calibrationOf } from './calibration.ts'
import { adaBudgets } from './head-budgets.ts'
import { cakeBudgets, cakePreferences, errorBudgets, pyramidBudgets, shareBudgets, spreadOf } from './layer-budgets.ts'
import { randomOf } from './random.ts'
import type { LayerScores } from './scores.ts'

const LAYERS = ['uniform', 'pyramid', 'cake', 'error', 'random'] as const
const HEADS = ['uniform', 'ada', 'random'] as const
type Layers = (typeof LAYERS)[number]
type Heads = (typeof HEADS)[number]

export interface AllocationOptions {
  readonly layers: Layers
  readonly beta: number
  readonly tau1: number
  readonly tau2: number
  readonly least: number
  readonly heads: Heads
  readonly floor: number
}

/** Options of {@link layerBudgets}, for the options of a policy. */
export const layerOptions = <const L extends Layers = 'uniform'>(layers?: L) =>
  ({
    layers: {
      kind: 'choice',
      default: layers ?? 'uniform',
      choices: LAYERS,
      help: 'how layers share the budget: the same to each, PyramidKV, CAKE, CompressKV (needs its calibration), by chance',
    },
    beta: { kind: 'number', default: 20, min: 1, max: 1000, help: 'with layers=pyramid: the last layer gets 1/beta' },
    tau1: {
      kind: 'number',
      default: 1,
      min: 0.05,
      max: 20,
      help: 'with layers=cake: weight of spread, larger is less',
    },
    tau2: { kind: 'number', default: 1, min: 0.05, max: 20, help: 'with layers=cake: weight of shift, larger is less' },
  }) as const satisfies OptionSpecs

/** Options of {@link headBudgets}. */
export const headOptions = <const H extends Heads = 'uniform'>(heads?: H) =>
  ({
    heads: {
      kind: 'choice',
      default: heads ?? 'uniform',
      choices: HEADS,
      help: 'how the KV heads of a layer share its rows: the same to each, Ada-KV, by chance',
    },
    floor: {
      kind: 'number',
      default: 0.2,
      min: 0,
      max: 1,
      help: 'with heads=ada: share of the uniform budget that each head is sure of',
    },
  }) as const satisfies OptionSpecs

/** Query rows that CAKE's preferences are made of where the scorer itself looks at none. */
const CAKE_WINDOW = 32

/** What the division has to see beyond what the scorer sees. */
export function allocationNeeds(base: ObservationNeeds, layers: Layers): ObservationNeeds {
  if (layers !== 'cake') return base
  const rows = base.window?.rows ?? CAKE_WINDOW
  const statistics = new Set<Statistic>([...(base.window?.statistics ?? []), 'entropy', 'variance'])
  return { ...base, window: { rows, statistics: [...statistics] } }
}

/** Of the whole cache, in rows that compete for a place: those that stay anyway are not counted. */
export interface LayerAsk {
  /** Places per KV head, on average. */
  readonly free: number
  /** Rows that compete, per KV head. */
  readonly cap: number
  /** Rows that stay anyway, per KV head. */
  readonly kept: number
  /** Query rows in what was observed of the prompt's end. */
  readonly window: number
}

/** Places per KV head, by layer. */
export function layerBudgets(ask: LayerAsk, seen: Observation, state: PolicyState, o: AllocationOptions): number[] {
  const { layers } = state.model
  const { free, cap, kept } = ask
  switch (o.layers) {
    case 'uniform':
      return new Array(layers).fill(free)
    case 'pyramid':
      return pyramidBudgets(layers, free, cap + kept, cap, o.beta)
    case 'cake': {
      const spreads = seen.window!.map((layer) => spreadOf(layer, ask.window))
      return cakeBudgets(cakePreferences(spreads, o.tau1, o.tau2), layers * free, cap, o.least)
    }
    case 'error': {
      const { layerShares } = calibrationOf(state, 'compresskv')
      // The authors count the window in: at least it and 8 rows (theirs: 32 in all), at most three budgets.
      const least = Math.min(free, 8)
      const most = Math.min(cap, 3 * (free + kept) - kept)
      return errorBudgets(layerShares, layers * free, least, most)
    }
    case 'random': {
      const weights = Array.from({ length: layers }, (_, layer) => randomOf(state.seed, layer))
      return shareBudgets(weights, layers * free, cap)
    }
    default:
      return o.layers satisfies never
  }
}

/** Places by KV head of one layer, `free` each on average. */
export function headBudgets(
  free: number,
  layer: number,
  scores: LayerScores,
  state: PolicyState,
  o: AllocationOptions,
): number[] {
  switch (o.heads) {
    case 'uniform':
      return scores.map(() => free)
    case 'ada':
      return adaBudgets(scores, free, o.floor)
    case 'random': {
      const weights = scores.map((_, kvHead) => randomOf(state.seed, layer, kvHead))
      return shareBudgets(weights, free * scores.length, Math.max(...scores.map((s) => s.length)))
    }
    default:
      return o.heads satisfies never
  }
}
