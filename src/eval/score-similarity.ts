/**
 * RepoQA's test of a retrieved function, which stands in for pass@1: nothing is run. Of all functions of the context the
 * reply's must be most similar to the wanted one, and similar by at least 0.8.
 *
 * RepoQA measures similarity by smoothed BLEU over words; here it is 1 - distance / length of the longer text, with
 * Levenshtein's distance over tokens (names, numbers, single signs): our functions have few words, and a BLEU of 4-grams
 * falls below 0.8 with a single wrong constant.
 */
export const NEAR_ENOUGH = 0.8

export function nearestIsTarget(reply: string, target: string, all: readonly string[]): boolean {
  const got = codeTokens(firstFunction(reply))
  const wanted = similarity(got, codeTokens(target))
  return wanted >= NEAR_ENOUGH && all.every((other) => other === target || similarity(got, codeTokens(other)) < wanted)
}

/** 1: equal; 0: nothing in common. */
export function similarity(a: readonly string[], b: readonly string[]): number {
  const longer = Math.max(a.length, b.length)
  return longer === 0 ? 1 : 1 - distance(a, b) / longer
}

/** Spacing does not count. */
export const codeTokens = (code: string): string[] => code.match(/\w+|[^\w\s]/g) ?? []

/** From the first `def`, in a code block if there is one, until the next function, the block's end or a line of prose. */
function firstFunction(reply: string): string {
  const block = reply.match(/```\w*\n?([\s\S]*?)(?:```|$)/)?.[1] ?? reply
  const from = block.indexOf('def ')
  if (from < 0) return block
  const [head = '', ...lines] = block.slice(from).split('\n')
  const end = lines.findIndex((line) => line.trim() !== '' && !/^\s/.test(line))
  return [head, ...(end < 0 ? lines : lines.slice(0, end))].join('\n')
}

function distance(a: readonly string[], b: readonly string[]): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    row = next
  }
  return row[b.length]!
}
