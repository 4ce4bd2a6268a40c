/**
 * How far a policy's next-token distributions are from the full cache's, place by place over the same text: the
 * Kullback-Leibler divergence KL(full || policy) in nats, and how often the likeliest token is the same.
 *
 * Logits give it exactly. An engine's parts hold, with `sampling.logprobs`, no more than the 20 likeliest tokens of each
 * side. From those: S = the tokens that are in both lists; A = those of the full cache's list alone, one event; all others one
 * event more. The sum runs over S, A and the rest. Lumping never raises a divergence (log sum inequality); q(A) is not known, but no
 * more than |A| times the least of the policy's list, and where that leaves a choice the least divergence is taken. So this is a lower
 * bound of the exact one, tight where the lists hold nearly all of the mass.
 *
 * Both sides must be at the same token of the same text. A grammar that allows one text does not bring that about: it leaves
 * the model free to spell it with other tokens.
 */
import { logSumExp, type TokenLogprob } from '../model/sampling/logprobs.ts'

export interface Agreement {
  /** Mean over places, nats. */
  readonly kl: number
  /** Share of the places where both sides find the same token likeliest. */
  readonly top1: number
  /** Places compared. */
  readonly n: number
}

/** Rounding can leave a rest of 0, or a hair below, where the other side has some. */
const LEAST_REST = 1e-12

/** [places][vocabulary], both of the same text. */
export function agreementOfLogits(full: readonly Float32Array[], policy: readonly Float32Array[]): Agreement {
  return agreement(full, policy, klOfLogits, (logits) =>
    logits.reduce((best, x, i) => (x > logits[best]! ? i : best), 0),
  )
}

/** [places][likeliest first], both of the same text. */
export function agreementOfTops(
  full: readonly (readonly TokenLogprob[])[],
  policy: readonly (readonly TokenLogprob[])[],
): Agreement {
  return agreement(full, policy, klOfTops, (top) => top[0]?.token ?? -1)
}

/** KL(p || q) in nats. */
export function klOfLogits(p: Float32Array, q: Float32Array): number {
  if (p.length !== q.length) throw new RangeError(`${p.length} logits against ${q.length}`)
  const [normP, normQ] = [logSumExp(p), logSumExp(q)]
  let kl = 0
  for (let i = 0; i < p.length; i++) {
    const logP = p[i]! - normP
    const x = Math.exp(logP)
    if (x > 0) kl += x * (logP - (q[i]! - normQ))
  }
  return kl
}

/**
 * The lower bound of KL(p || q) that two lists of likeliest tokens give, in nats. Tokens of p's list that are not in q's are no
 * likelier there than the last one that is, which bounds their share of q's rest.
 */
export function klOfTops(p: readonly TokenLogprob[], q: readonly TokenLogprob[]): number {
  const other = new Map(q.map(({ token, logprob }) => [token, logprob]))
  let kl = 0
  let restP = 1
  let restQ = 1
  let missed = 0
  let missedP = 0
  for (const { token, logprob } of p) {
    const logQ = other.get(token)
    const x = Math.exp(logprob)
    if (logQ === undefined) {
      missed++
      missedP += x
      continue
    }
    kl += x * (logprob - logQ)
    restP -= x
    restQ -= Math.exp(logQ)
  }
  const last = q.at(-1)
  // As large as it may be, but no larger than makes both shares of the rest alike, where the bound is least.
  const alike = restP > 0 ? (restQ * missedP) / restP : 0
  const missedQ = last ? Math.min(alike, missed * Math.exp(last.logprob)) : alike
  kl += term(missedP, missedQ) + term(restP - missedP, restQ - missedQ)
  return Math.max(0, kl)
}

/** p ln(p / q) of a lump of tokens. */
function term(p: number, q: number): number {
  return p > LEAST_REST ? p * Math.log(p / Math.max(q, LEAST_REST)) : 0
}

function agreement<T>(
  full: readonly T[],
  policy: readonly T[],
  kl: (p: T, q: T) => number,
  best: (of: T) => number,
): Agreement {
  const n = full.length
  if (n === 0 || n !== policy.length) throw new RangeError(`${n} places against ${policy.length}`)
  const sum = (f: (p: T, q: T) => number) => full.reduce((s, p, i) => s + f(p, policy[i]!), 0) / n
  return { kl: sum(kl), top1: sum((p, q) => Number(best(p) === best(q))), n }
}
