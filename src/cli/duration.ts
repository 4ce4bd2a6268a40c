/** Times as people type them. */
import { InvalidArgumentError } from 'commander'

/** Milliseconds, largest first. */
const UNITS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1000, ms: 1 } as const

/**
 * `500ms`, `30s`, `1.5m`, `2h`, `1d`: whole milliseconds, rounded. A bare number is refused: it could mean anything.
 * @throws InvalidArgumentError which Commander turns into a usage error that names the flag
 */
export function parseDuration(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|d)$/i.exec(text.trim()) ?? []
  const ms = Math.round(Number(number) * UNITS[(unit?.toLowerCase() ?? 's') as keyof typeof UNITS])
  if (!Number.isSafeInteger(ms)) throw new InvalidArgumentError('It must be a duration such as 500ms, 30s, 5m or 2h.')
  return ms
}

/** A duration that {@link parseDuration} takes back: the largest unit that needs no fraction. */
export function typedDuration(ms: number): string {
  const [unit, factor] = Object.entries(UNITS).find(([, f]) => ms >= f && ms % f === 0) ?? ['ms', 1]
  return `${ms / factor}${unit}`
}
