/**
 * How many rows each layer gets: the first of the steps of which a policy is composed. All functions share out
 * Lyr * free rows, `free` the rows that compete for a place per KV head, and return rows per KV head by layer, layer 0 first.
 */
import type { ObservedLayer } from '../../contract/observation.ts'
import { statistic } from './scores.ts'
import { capTo, roundTo, spread } from './shares.ts'

/**
 * PyramidKV: a straight line from the first layer down to free / beta in the last.
 * The authors round the slope down, which can add Lyr^2/2 rows; here each layer is rounded so that the total is exact.
 * @param n rows in the cache, of which `cap` compete for a place
 */
export function pyramidBudgets(layers: number, free: number, n: number, cap: number, beta: number): number[] {
  // A prompt shorter than two budgets has no room for a slope.
  if (n < 2 * free || layers === 1) return new Array(layers).fill(free)
  let least = Math.floor(free / beta)
  let most = 2 * free - least
  if (most >= cap) {
    most = cap
    least = 2 * free - most
  }
  const line = Array.from({ length: layers }, (_, l) => most - (l * (most - least)) / (layers - 1))
  return roundTo(line, layers * free)
}

/** What CAKE sees of a layer: how wide its attention is spread, and how much it moves from query to query. */
export interface Spread {
  /** Hs = -sum over h, i, j of P[i,j,h] ln P[i,j,h] */
  readonly dispersion: number
  /** Vt = sum over h, j of the variance of P[i,j,h] over i */
  readonly shift: number
}

/** Over all heads, without the keys of the window itself: the last `window` of each. */
export function spreadOf(layer: ObservedLayer, window: number): Spread {
  return { dispersion: sumBefore(layer, 'entropy', window), shift: sumBefore(layer, 'variance', window) }
}

function sumBefore(layer: ObservedLayer, name: 'entropy' | 'variance', window: number): number {
  const { n, heads, data } = statistic(layer, name)
  const group = heads / layer.keys.length
  let sum = 0
  for (let h = 0; h < heads; h++) {
    const to = layer.keys[Math.floor(h / group)]! - window
    for (let j = 0; j < to; j++) sum += data[h * n + j]!
  }
  return sum
}

/**
 * CAKE: Pref = Hs^(1/tau1) * Vt^(1/tau2), in proportion to which layers get their rows.
 * Only ratios count, and the two have very different scales: computed as logarithms, the largest preference is 1.
 */
export function cakePreferences(spreads: readonly Spread[], tau1: number, tau2: number): number[] {
  const logs = spreads.map(({ dispersion, shift }) => Math.log(dispersion) / tau1 + Math.log(shift) / tau2)
  const most = Math.max(...logs)
  // No attention before the window, or the same in each query: nothing to prefer.
  if (!Number.isFinite(most)) return spreads.map(() => 1)
  return logs.map((log) => Math.exp(log - most))
}

/**
 * CAKE's rule: truncated shares; what passes a layer's cap, and what truncation left, goes evenly to those below theirs.
 * @param least rows that each layer is sure of, as far as `total` goes
 */
export function cakeBudgets(preferences: readonly number[], total: number, cap: number, least = 0): number[] {
  const sum = preferences.reduce((a, b) => a + b, 0)
  const caps = preferences.map(() => cap)
  const sure = Math.min(least, cap, Math.floor(total / preferences.length))
  const spare = total - sure * preferences.length
  const shares = capTo(
    preferences.map((p) => sure + Math.trunc((p / sum) * spare)),
    caps,
  )
  const left = total - shares.reduce((a, b) => a + b, 0)
  const open = shares.flatMap((b, l) => (b < cap ? [l] : []))
  if (left > 0 && open.length) spread(shares, open, left)
  return capTo(shares, caps)
}

/**
 * CompressKV's error_aware_layer_budget_allocation: b = least + round(share * (total - Lyr * least)), clipped; what is then
 * missing goes to the layers with the largest shares, what is too much is taken from those with the smallest, one row at a time.
 */
export function errorBudgets(shares: readonly number[], total: number, least: number, most: number): number[] {
  const spare = total - shares.length * least
  const rows = shares.map((r) => Math.min(most, Math.max(least, least + Math.round(r * spare))))
  const falling = shares.map((_, l) => l).sort((a, b) => shares[b]! - shares[a]! || a - b)
  let missing = total - rows.reduce((a, b) => a + b, 0)
  for (let moved = true; missing !== 0 && moved; ) {
    moved = false
    for (const l of missing > 0 ? falling : falling.toReversed()) {
      const step = Math.sign(missing)
      if (step === 0 || rows[l]! + step > most || rows[l]! + step < least) continue
      rows[l]! += step
      missing -= step
      moved = true
    }
  }
  return rows
}

/** In proportion to weights, no layer above `cap`. */
export function shareBudgets(weights: readonly number[], total: number, cap: number): number[] {
  const sum = weights.reduce((a, b) => a + b, 0)
  const rows = roundTo(
    weights.map((w) => (w / sum) * total),
    total,
  )
  return capTo(
    rows,
    weights.map(() => cap),
  )
}
