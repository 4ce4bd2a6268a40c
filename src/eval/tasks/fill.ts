/** Texts of a wanted number of tokens, made of whole units: sentences, pairs, functions. */
import { KvasirError } from '../../contract/errors.ts'
import type { Draw } from './draw.ts'
import type { Setting } from './example.ts'

/** A text is done when it lacks or exceeds no more than this share of its length. */
const CLOSE = 0.01
/** What is promised of every example. */
export const TOLERANCE = 0.02
/** Draws of a last unit of the right size. */
const TRIES = 40
/** Corrections of the estimate. */
const ROUNDS = 8

export interface Filling {
  /** The whole context, with these units in it. The order of units must not change the number of tokens much. */
  readonly render: (units: readonly string[]) => string
  /** A further unit. `room` tokens are left: near the end, small ones fit better. */
  readonly next: (room: number) => string
}

/** Units that bring the context to its length. @throws KvasirError INVALID_ARGUMENT when what must stand in it is longer. */
export function fill({ length, count }: Pick<Setting, 'length' | 'count'>, { render, next }: Filling): string[] {
  const close = Math.max(2, Math.floor(length * CLOSE))
  const units: string[] = []
  const fixed = count(render(units))
  let total = fixed
  for (let round = 0; total < length - close && round < ROUNDS; round++) {
    // Sums of parts are close to the whole, and a thousand times cheaper; the whole is counted when they say it is full.
    let sum = total
    for (let misses = 0; sum < length - close && misses < TRIES; ) {
      const unit = next(length - sum)
      const size = count(` ${unit}`)
      if (sum + size > length + close) misses++
      else {
        units.push(unit)
        sum += size
      }
    }
    for (total = count(render(units)); total > length + close && units.length > 0; total = count(render(units)))
      units.pop()
  }
  if (Math.abs(total - length) > length * TOLERANCE)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `a context of ${length} tokens cannot be written: ${fixed} must stand in it, and it came to ${total}. Ask for another length`,
      { length, fixed, total },
    )
  return units
}

/** `inserts` at random places between `units`. Both keep their order: shuffle first where it must not tell anything. */
export function scatter(r: Draw, units: readonly string[], inserts: readonly string[]): string[] {
  const places = inserts.map(() => r.whole(0, units.length)).sort((a, b) => a - b)
  const out: string[] = []
  let from = 0
  for (const [i, place] of places.entries()) {
    out.push(...units.slice(from, place), inserts[i]!)
    from = place
  }
  return [...out, ...units.slice(from)]
}
