/**
 * CompressKV, step A: which query heads hold on to the whole of a passage while the model copies from it.
 *
 * Paper    Lin et al. 2025, arXiv 2508.02401.  Code  TUDa-HWAI/CompressKV, semantic_retrieval_head_detection.py.  Spec  compresskv.md, A
 * Formula  needle [a, b) of the prompt; at each step of the answer, with the row's probabilities A and its token y:
 *          score(l,h) += sum over j in [a, b) of A[l,h,j], once for each i in [a, b) with prompt[i] = y
 *          an answer counts when it holds more than half of the needle's words; the score is the mean over those that count
 */
import type { Range } from '../../contract/units.ts'
import type { Tokenizer } from '../../model/tokenizer/tokenizer.ts'
import { argmax } from './measurement.ts'
import type { Subject, Text } from './subject.ts'
import type { NeedlePrompt } from './texts.ts'

/** The authors': tokens of an answer, and the share of the needle's words that it must hold. */
const MOST_STEPS = 50
const LEAST_RECALL = 0.5

/** What one answer adds to each head: [layer][head], f64; null: it does not count. */
export async function needleScores(
  subject: Subject,
  { tokens, span, needle }: NeedlePrompt,
  signal?: AbortSignal,
): Promise<readonly Float64Array[] | null> {
  const { config, tokenizer } = subject.model
  const scores = Array.from({ length: config.layers }, () => new Float64Array(config.heads))
  const prompt = tokens.subarray(span.from, span.to)
  using text = subject.begin(signal)
  await text.skim(tokens.subarray(0, -1))
  const answer = await answerOf(text, tokens.at(-1)!, tokenizer, (layers, produced) => {
    for (const [layer, p] of layers.entries()) addCopyStep(scores[layer]!, p, span, prompt, produced)
  })
  return wordRecall(tokenizer.decode(answer), needle) > LEAST_RECALL ? scores : null
}

/** A greedy answer, up to the end of its first line. @param seen P of each row, f32 [n, H] by layer, and the token it gave */
async function answerOf(
  text: Text,
  last: number,
  tokenizer: Tokenizer,
  seen: (layers: readonly Float32Array[], produced: number) => void,
): Promise<number[]> {
  const answer: number[] = []
  let token = last
  while (answer.length < MOST_STEPS) {
    const { logits, layers } = await text.look(Int32Array.of(token))
    token = argmax(logits)
    seen(
      layers.map((l) => l.statistics.sum!),
      token,
    )
    if (tokenizer.isEndOfGeneration(token)) break
    answer.push(token)
    if (tokenizer.piece(token).includes(NEWLINE)) break
  }
  return answer
}

const NEWLINE = 0x0a

/**
 * @param scores f64 [H], added to
 * @param p f32 [n, H]
 * @param needle tokens in `span`. One that occurs twice in them adds the mass twice: so do the authors.
 */
export function addCopyStep(
  scores: Float64Array,
  p: Float32Array,
  { from, to }: Range,
  needle: Int32Array,
  produced: number,
): void {
  const copies = needle.reduce((count, token) => count + Number(token === produced), 0)
  if (copies === 0) return
  const n = p.length / scores.length
  for (let h = 0; h < scores.length; h++) {
    const mass = p.subarray(h * n + from, h * n + to).reduce((sum, x) => sum + x, 0)
    scores[h]! += copies * mass
  }
}

/** ROUGE-1 recall: share of the wanted words that occur, each as often as wanted. */
export function wordRecall(got: string, wanted: string): number {
  const words = (text: string): string[] => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
  const left: string[] = words(got)
  const all = words(wanted)
  const hits = all.filter((word) => {
    const at = left.indexOf(word)
    if (at >= 0) left.splice(at, 1)
    return at >= 0
  })
  return all.length === 0 ? 0 : hits.length / all.length
}

/** By layer: all heads, the best first; of equals the first. */
export function rankHeads(scores: readonly Float64Array[]): number[][] {
  return scores.map((layer) => [...layer.keys()].sort((a, b) => layer[b]! - layer[a]! || a - b))
}
