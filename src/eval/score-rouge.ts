/**
 * ROUGE-Lsum (Lin 2004, "summary-level" ROUGE-L), as Google's `rouge_score` computes it without stemming: texts are split
 * into sentences; a reference sentence's hits are the union of its longest common subsequences with each sentence of the
 * summary; a token is hit no more often than the summary has it. F-measure over tokens.
 */
export function rougeLsum(summary: string, reference: string): number {
  const got = sentences(summary)
  const wanted = sentences(reference)
  const sizes = [got, wanted].map((s) => s.reduce((n, tokens) => n + tokens.length, 0))
  const left = [counts(got), counts(wanted)]
  let hits = 0
  for (const sentence of wanted)
    for (const at of union(got.map((other) => commonPlaces(sentence, other)))) {
      const token = sentence[at]!
      if (!left.every((n) => (n.get(token) ?? 0) > 0)) continue
      for (const n of left) n.set(token, n.get(token)! - 1)
      hits++
    }
  return hits === 0 ? 0 : (2 * hits) / (sizes[0]! + sizes[1]!)
}

/** Lines, and sentences in them, as lower-case runs of letters and digits. */
function sentences(text: string): string[][] {
  return text
    .split(/\n|(?<=[.!?])\s+/)
    .map((s) => s.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [])
    .filter((tokens) => tokens.length > 0)
}

function counts(of: readonly (readonly string[])[]): Map<string, number> {
  const n = new Map<string, number>()
  for (const token of of.flat()) n.set(token, (n.get(token) ?? 0) + 1)
  return n
}

const union = (lists: readonly (readonly number[])[]): number[] => [...new Set(lists.flat())].sort((a, b) => a - b)

/** Places in `a` of one longest common subsequence with `b`. */
function commonPlaces(a: readonly string[], b: readonly string[]): number[] {
  // longest[i][j]: of the first i tokens of a and the first j of b
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1))
  for (let i = 1; i <= a.length; i++)
    for (let j = 1; j <= b.length; j++)
      longest[i]![j] =
        a[i - 1] === b[j - 1] ? longest[i - 1]![j - 1]! + 1 : Math.max(longest[i - 1]![j]!, longest[i]![j - 1]!)
  const places: number[] = []
  for (let i = a.length, j = b.length; i > 0 && j > 0; )
    if (a[i - 1] === b[j - 1]) {
      places.push(--i)
      j--
    } else if (longest[i - 1]![j]! > longest[i]![j - 1]!) i--
    else j--
  return places.reverse()
}
