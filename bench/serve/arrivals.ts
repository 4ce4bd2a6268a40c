/**
 * When requests come. As `vllm bench serve` has it: gaps follow a gamma distribution of shape `burstiness` and mean 1 / rate,
 * so that their coefficient of variation is 1 / sqrt(burstiness): 1 is a Poisson process, less is burstier, more is more even.
 */
import type { Random } from '../random-model.ts'

export interface Traffic {
  /** Requests per second; infinite: all at once. */
  readonly rate: number
  /** Infinite: equal gaps. */
  readonly burstiness: number
}

/**
 * Milliseconds from the start, ascending. The last one is scaled to be `count / rate`, as in vLLM: the sum of random gaps would
 * be off by a few per cent, and every throughput with it.
 */
export function arrivalTimes(count: number, { rate, burstiness }: Traffic, random: Random): Float64Array {
  const times = new Float64Array(count)
  if (rate === Number.POSITIVE_INFINITY) return times
  let now = 0
  for (let i = 0; i < count; i++) {
    now += burstiness === Number.POSITIVE_INFINITY ? 1 : gamma(burstiness, random)
    times[i] = now
  }
  const scale = (1000 * count) / rate / now
  return times.map((t) => t * scale)
}

/** Of scale 1: mean and variance are `shape`. Marsaglia and Tsang 2000, "A simple method for generating gamma variables". */
export function gamma(shape: number, random: Random): number {
  // Below 1: one of shape + 1, times u^(1 / shape).
  if (shape < 1) return gamma(shape + 1, random) * (1 - random.uniform()) ** (1 / shape)
  const d = shape - 1 / 3
  const c = 1 / Math.sqrt(9 * d)
  for (;;) {
    const x = random.normal()
    const v = (1 + c * x) ** 3
    if (v > 0 && Math.log(1 - random.uniform()) < (x * x) / 2 + d - d * v + d * Math.log(v)) return d * v
  }
}
