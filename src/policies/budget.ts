/**
 * How much of the cache a policy may keep. People say a fraction, tokens or bytes; policies get rows: a ratio alone would
 * have to be searched for when somebody wants exactly 512 of them.
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { ModelDims } from '../contract/policy.ts'

export type Budget =
  /** Of the bytes that the prompt's full cache takes; above 0, at most 1. */
  | { readonly kind: 'fraction'; readonly fraction: number }
  /** Rows per layer and KV head on average. */
  | { readonly kind: 'tokens'; readonly tokens: number }
  /** Of keys and values of all layers together. */
  | { readonly kind: 'bytes'; readonly bytes: number }

/**
 * `0.25` or `25%` of the full cache; `512` or `512t`: tokens; `64MiB`, `1.5GB`, `64M` (binary): bytes. 1 is all of it.
 * @throws KvasirError INVALID_ARGUMENT
 */
export function parseBudget(given: string | number): Budget {
  const text = String(given).trim()
  const [, number, unit = ''] = /^(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(%|t|b|[kmgt]i?b|[kmg])?$/i.exec(text) ?? []
  const budget = number === undefined ? null : budgetOf(Number(number), unit.toLowerCase())
  if (budget) return budget
  throw new KvasirError(
    'INVALID_ARGUMENT',
    `budget '${text}': give a fraction of the full cache (0.25, 25%), tokens per layer and KV head (512, 512t), or bytes (64MiB)`,
    { budget: given },
  )
}

function budgetOf(x: number, unit: string): Budget | null {
  if (!(x > 0 && Number.isFinite(x))) return null
  if (unit === '%') return x <= 100 ? { kind: 'fraction', fraction: x / 100 } : null
  if (unit === '' && x <= 1) return { kind: 'fraction', fraction: x }
  if (unit === '' || unit === 't') return Number.isSafeInteger(x) ? { kind: 'tokens', tokens: x } : null
  const power = ['b', 'k', 'm', 'g', 't'].indexOf(unit[0]!)
  const bytes = Math.floor(x * (unit.length === 2 ? 1000 : 1024) ** power)
  return bytes >= 1 && Number.isSafeInteger(bytes) ? { kind: 'bytes', bytes } : null
}

/** The shortest text that {@link parseBudget} takes back. */
export function showBudget(budget: Budget): string {
  switch (budget.kind) {
    case 'fraction':
      return String(budget.fraction)
    case 'tokens':
      return `${budget.tokens}t`
    case 'bytes':
      return `${budget.bytes}B`
    default:
      return budget satisfies never
  }
}

export interface BudgetBase {
  readonly model: ModelDims
  readonly promptRows: number
  /** Of the key and the value of one row, in one layer and one KV head. */
  readonly rowBytes: number
}

/**
 * Rows per layer and KV head that a budget pays for on average, at least one.
 * @throws KvasirError INVALID_ARGUMENT when it does not pay for one
 */
export function budgetRows(budget: Budget, { model, promptRows, rowBytes }: BudgetBase): number {
  switch (budget.kind) {
    case 'tokens':
      return budget.tokens
    case 'fraction':
      // 0.29 * 100 is 28.999999999999996.
      return Math.max(1, Math.floor(budget.fraction * promptRows + 1e-9))
    case 'bytes': {
      const everywhere = rowBytes * model.layers * model.kvHeads
      if (budget.bytes >= everywhere) return Math.floor(budget.bytes / everywhere)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `a budget of ${showBytes(budget.bytes)} does not hold one token: its keys and values take ${showBytes(everywhere)} in ` +
          `${model.layers} layers. Give more, or a fraction such as 0.25`,
        { budgetBytes: budget.bytes, tokenBytes: everywhere },
      )
    }
    default:
      return budget satisfies never
  }
}
