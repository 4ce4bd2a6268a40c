/**
 * UNComp's groups of layers: where the entropy of the queries falls, tokens have become redundant, and from there on fewer of
 * them are computed.
 */

/** A group begins at layer 0, and at each layer l with E_l - E_(l-1) < eps. @returns first layers */
export function layerGroups(entropies: readonly number[], eps: number): number[] {
  return entropies.flatMap((entropy, l) => (l === 0 || entropy - entropies[l - 1]! < eps ? [l] : []))
}

/** Falls below this are noise. */
const LEAST_FALL = 0.05

/** The same; if it gives a single group, `eps` is halved until there are three or it comes down to noise. */
export function someLayerGroups(entropies: readonly number[], eps: number): number[] {
  let groups = layerGroups(entropies, eps)
  if (groups.length > 1) return groups
  for (let e = eps / 2; groups.length < 3 && e <= -LEAST_FALL; e /= 2) groups = layerGroups(entropies, e)
  return groups
}

/** Layers of which each computes the same rows. */
export interface Stage {
  readonly first: number
  readonly rows: number
}

/**
 * Group g of 0 to Gm computes most = nMin + floor((nMax - nMin) / Gm) (Gm - g) rows, the first one all. Groups that lose none
 * belong to the stage before them.
 */
export function stagesOf(groups: readonly number[], rows: number, nMin: number, nMax: number): Stage[] {
  const stages: Stage[] = [{ first: 0, rows }]
  const step = Math.floor((nMax - nMin) / Math.max(1, groups.length - 1))
  for (const [g, first] of groups.entries()) {
    const most = nMin + step * (groups.length - 1 - g)
    if (g > 0 && most < stages.at(-1)!.rows) stages.push({ first, rows: most })
  }
  return stages
}

/** Rows that each layer computes. */
export function rowsByLayer(stages: readonly Stage[], layers: number): number[] {
  return Array.from({ length: layers }, (_, l) => stages.findLast(({ first }) => first <= l)!.rows)
}
