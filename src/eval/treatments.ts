/** What is done to the cache of a cell's examples: a policy, its budget, and the moment. */
import { choosePolicy, parseBudget, showBudget } from '../policies/index.ts'
import { isTypes, typesText } from './cache-types.ts'
import type { CompressAt } from './plan.ts'

export interface Treatment {
  /** The shortest text that names it with its options; `full` keeps everything; `types?k=q8_0` too, in other types. */
  readonly policy: string
  /** A fraction of the full cache, or as people write tokens and bytes: `512t`, `1048576B`; {@link OWN}. */
  readonly budget: number | string
  /** What the policy has seen when it shortens; null: the whole prompt, or nothing is shortened. */
  readonly compressAt: CompressAt | null
}

/** Of policies that take no budget: their options say how much they hold. */
export const OWN = 'own'

export const FULL: Treatment = { policy: 'full', budget: 1, compressAt: null }

export const isFull = ({ policy }: Pick<Treatment, 'policy'>): boolean => policy === FULL.policy

/**
 * Every policy with every budget at every moment, in this order, those that take none with none; `full` once and first, when it is
 * among them.
 * @throws KvasirError INVALID_ARGUMENT for policies, options and budgets that do not exist
 */
export function treatmentsOf(
  policies: readonly string[],
  budgets: readonly (string | number)[],
  moments: readonly (CompressAt | null)[],
): Treatment[] {
  const chosen = new Map(policies.map(read).map(({ text, takesBudget }) => [text, takesBudget]))
  const names = new Set(chosen.keys())
  const amounts = new Set(budgets.map(readBudget))
  const treatments = [...chosen]
    .filter(([policy]) => !isFull({ policy }))
    .flatMap(([policy, takesBudget]) =>
      (takesBudget ? [...amounts] : [OWN]).flatMap((budget) =>
        moments.map((compressAt): Treatment => ({ policy, budget, compressAt })),
      ),
    )
  return names.has(FULL.policy) ? [FULL, ...treatments] : treatments
}

function read(spec: string): { readonly text: string; readonly takesBudget: boolean } {
  if (isTypes(spec)) return { text: typesText(spec), takesBudget: false }
  const { text, definition } = choosePolicy(spec)
  return { text, takesBudget: definition.takesBudget !== false }
}

/** Fractions as numbers, so that 25%, 0.25 and .25 are one. */
function readBudget(given: string | number): number | string {
  const budget = parseBudget(given)
  return budget.kind === 'fraction' ? budget.fraction : showBudget(budget)
}
