/** What panels, margins and tables do with lists. */

/** In the order in which keys first come. */
export function groupBy<T, K>(list: readonly T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>()
  for (const item of list) {
    const key = keyOf(item)
    const group = groups.get(key)
    if (group) group.push(item)
    else groups.set(key, [item])
  }
  return groups
}

export const mean = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0) / of.length

export const unique = <T>(of: readonly T[]): T[] => [...new Set(of)]
