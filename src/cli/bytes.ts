/** Sizes as people type them. */
import { InvalidArgumentError } from 'commander'

/** Without a B at the end a unit is binary, as for `dd` and Java: 2G is 2GiB. */
const POWERS = ['', 'k', 'm', 'g', 't'] as const

/**
 * `512MiB`, `2G` (2 GiB), `1.5GB` (1.5 · 10⁹), `4096`: whole bytes, rounded down.
 * @throws InvalidArgumentError which Commander turns into a usage error that names the flag
 */
export function parseBytes(text: string): number {
  const found = /^(\d+(?:\.\d+)?|\.\d+)\s*(?:([kmgt])(i?b)?|b)?$/i.exec(text.trim())
  const power = POWERS.indexOf((found?.[2] ?? '').toLowerCase() as (typeof POWERS)[number])
  const base = found?.[3]?.toLowerCase() === 'b' ? 1000 : 1024
  const bytes = Math.floor(Number(found?.[1]) * base ** power)
  if (!Number.isSafeInteger(bytes))
    throw new InvalidArgumentError('It must be a size such as 512MiB, 2GiB, 2G, 1.5GB, or plain bytes.')
  return bytes
}

/** A size that {@link parseBytes} takes back: whole MiB, rounded up. */
export function typedBytes(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)}MiB`
}
