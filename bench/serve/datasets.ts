/** Workloads that are made up: lengths and sharing as asked for. Seeded: equal options, equal workload. */
import { Random } from '../random-model.ts'
import type { Piece, Session } from './workload.ts'

export interface Lengths {
  /** Tokens of a prompt, beside its prefix. */
  readonly inputTokens: number
  readonly outputTokens: number
  /** Both are drawn evenly from n (1 - r) to n (1 + r). */
  readonly rangeRatio: number
}

/** Prompts that share nothing, but for `prefixTokens` at the beginning of all. */
export function randomDataset(count: number, lengths: Lengths, prefixTokens: number, seed: number): Session[] {
  const random = new Random(seed)
  return Array.from({ length: count }, (_, i) =>
    single([...prefix('prefix', prefixTokens), { key: `prompt ${i}`, tokens: inputTokens(lengths, random) }], {
      outputTokens: outputTokens(lengths, random),
    }),
  )
}

/** As vLLM's `prefix_repetition`: prompts begin with one of `prefixes` texts, each of them equally often, in random order. */
export function sharedPrefixDataset(
  count: number,
  lengths: Lengths,
  { prefixes, prefixTokens }: { readonly prefixes: number; readonly prefixTokens: number },
  seed: number,
): Session[] {
  const random = new Random(seed)
  const order = shuffled(
    Array.from({ length: count }, (_, i) => i % prefixes),
    random,
  )
  return order.map((p, i) =>
    single([...prefix(`prefix ${p}`, prefixTokens), { key: `prompt ${i}`, tokens: inputTokens(lengths, random) }], {
      outputTokens: outputTokens(lengths, random),
    }),
  )
}

/** Conversations of `turns` questions each; the first question begins with `prefixTokens` that all conversations share. */
export function multiTurnDataset(
  { conversations, turns, prefixTokens }: Readonly<Record<'conversations' | 'turns' | 'prefixTokens', number>>,
  lengths: Lengths,
  seed: number,
): Session[] {
  const random = new Random(seed)
  return Array.from({ length: conversations }, (_, c) => ({
    arrivalMs: null,
    turns: Array.from({ length: turns }, (_, t) => ({
      content: [
        ...prefix('prefix', t === 0 ? prefixTokens : 0),
        { key: `conversation ${c} turn ${t}`, tokens: inputTokens(lengths, random) },
      ],
      outputTokens: outputTokens(lengths, random),
    })),
  }))
}

export function single(
  content: string | readonly Piece[],
  { outputTokens, arrivalMs = null }: { readonly outputTokens: number; readonly arrivalMs?: number | null },
): Session {
  return { turns: [{ content, outputTokens }], arrivalMs }
}

function prefix(key: string, tokens: number): Piece[] {
  return tokens > 0 ? [{ key, tokens }] : []
}

function inputTokens({ inputTokens, rangeRatio }: Lengths, random: Random): number {
  return inRange(inputTokens, rangeRatio, random)
}

function outputTokens({ outputTokens, rangeRatio }: Lengths, random: Random): number {
  return inRange(outputTokens, rangeRatio, random)
}

/** Whole, both ends included; at least 1. */
function inRange(n: number, ratio: number, random: Random): number {
  const from = Math.max(1, Math.floor(n * (1 - ratio)))
  const to = Math.max(1, Math.ceil(n * (1 + ratio)))
  return from + Math.floor(random.uniform() * (to - from + 1))
}

/** Fisher and Yates. */
function shuffled<T>(values: readonly T[], random: Random): T[] {
  const result = [...values]
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random.uniform() * (i + 1))
    ;[result[i], result[j]] = [result[j]!, result[i]!]
  }
  return result
}
