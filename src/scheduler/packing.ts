/**
 * Best-fit decreasing: items of given lengths into few bins of one capacity.
 *
 * What `binpacking.to_constant_volume` does, which Prepacking's code calls: longest item first, each into the fullest bin that
 * has room for it, else into a new one. Ties: the item, and the bin, that comes first. At most 11/9 of the fewest bins plus one.
 */
import { KvasirError } from '../contract/errors.ts'

/** Indices of `lengths`, bin by bin, in the order in which the bins were opened. */
export function bestFitDecreasing(lengths: readonly number[], capacity: number): number[][] {
  const bins: { items: number[]; load: number }[] = []
  const order = lengths.map((_, i) => i).sort((a, b) => lengths[b]! - lengths[a]! || a - b)
  for (const item of order) {
    const length = lengths[item]!
    if (length > capacity)
      throw new KvasirError('INVALID_ARGUMENT', `an item of length ${length} in bins of ${capacity}`, {
        item,
        capacity,
      })
    let best: (typeof bins)[number] | null = null
    for (const bin of bins) if (bin.load + length <= capacity && bin.load > (best?.load ?? -1)) best = bin
    if (!best) bins.push((best = { items: [], load: 0 }))
    best.items.push(item)
    best.load += length
  }
  return bins.map((b) => b.items)
}
