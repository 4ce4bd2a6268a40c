/** Log-probabilities from a model's own logits, in float64. */
export interface TokenLogprob {
  readonly token: number
  /** Natural logarithm of the probability. */
  readonly logprob: number
}

/** log(sum(exp(logits))). */
export function logSumExp(logits: Float32Array): number {
  let highest = -Infinity
  for (let i = 0; i < logits.length; i++) if (logits[i]! > highest) highest = logits[i]!
  let sum = 0
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - highest)
  return highest + Math.log(sum)
}

/** The `n` most likely tokens, most likely first; of equals the lower id first. */
export function topLogprobs(logits: Float32Array, n: number, norm = logSumExp(logits)): TokenLogprob[] {
  const top: number[] = []
  for (let i = 0; i < logits.length && n > 0; i++) {
    if (top.length === n && !(logits[i]! > logits[top[n - 1]!]!)) continue
    let at = top.length
    while (at > 0 && logits[i]! > logits[top[at - 1]!]!) at--
    top.splice(at, 0, i)
    if (top.length > n) top.pop()
  }
  return top.map((token) => ({ token, logprob: logits[token]! - norm }))
}
