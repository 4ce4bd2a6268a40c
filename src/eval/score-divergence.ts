/**
 * How far a policy's next-token distributions are from the full cache's, place by place over the same text: the
 * Kullback-Leibler divergence KL(full || policy) in nats, and how often the likeliest token is the same.
 *
 * Logits give it exactly. An engine's parts hold, with `sampling.logprobs`, no more than the 20 likeliest tokens of each
 * side. From those: S = the tokens that are in both lists; all others, on either side, are lumped into one event "rest"
 * with p(rest) = 1 - sum of p over S. The sum then runs over S and rest. Lumping never raises a divergence (log sum
 * inequality), so this is a lower bound of the exact one, tight where the lists hold nearly all of the mass.
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

/** The lower bound of KL(p || q) that two lists of likeliest tokens give, in nats. */
export function klOfTops(p: readonly TokenLogprob[], q: readonly TokenLogprob[]): number {
  const other = new Map(q.map(({ token, logprob }) => [token, logprob]))
  let kl = 0
  let restP = 1
  let restQ = 1
  for (const { token, logprob } of p) {
    const logQ = other.get(token)
    if (logQ === undefined) continue
    const x = Math.exp(logprob)
    kl += x * (logprob - logQ)
    restP -= x
    restQ -= Math.exp(logQ)
  }
  if (restP > LEAST_REST) kl += restP * Math.log(restP / Math.max(restQ, LEAST_REST))
  return Math.max(0, kl)
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
