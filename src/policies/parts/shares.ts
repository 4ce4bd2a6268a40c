/** Whole rows out of shares: totals are kept to the row, since policies are compared at equal bytes. */

/**
 * Whole numbers near `quotas` that add up to `total`: rounded down, and one more for the largest fractions, ties to the
 * first. `total` differs from the sum of the quotas by less than one for each.
 */
export function roundTo(quotas: readonly number[], total: number): number[] {
  // A quota that is whole but for rounding errors is whole.
  const whole = quotas.map((q) => Math.floor(q + 1e-9))
  const left = total - whole.reduce((a, b) => a + b, 0)
  const order = quotas.map((q, i) => [i, q - whole[i]!] as const).sort(([i, a], [j, b]) => b - a || i - j)
  for (const [i] of order.slice(0, left)) whole[i]!++
  return whole
}

/** What goes beyond a cap is spread evenly over those below theirs, until all is placed or everything is full. */
export function capTo(rows: readonly number[], caps: readonly number[]): number[] {
  const out = [...rows]
  for (;;) {
    const excess = out.reduce((sum, b, i) => sum + Math.max(0, b - caps[i]!), 0)
    for (const [i, cap] of caps.entries()) out[i] = Math.min(out[i]!, cap)
    const open = out.flatMap((b, i) => (b < caps[i]! ? [i] : []))
    if (excess <= 0 || open.length === 0) return out
    spread(out, open, excess)
  }
}

/** Adds `amount` to the entries at `where`: the same to each, one more to the first ones. */
export function spread(out: number[], where: readonly number[], amount: number): void {
  const each = Math.floor(amount / where.length)
  const more = amount - each * where.length
  for (const [k, i] of where.entries()) out[i]! += each + (k < more ? 1 : 0)
}
