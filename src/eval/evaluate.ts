/** Accuracy of a model on evaluation sets: greedy, each user turn scored by the share of its strings that the reply holds. */
import type { EngineApi } from '../engine/api.ts'
import { type EvalExample, readExamples } from './data.ts'

export interface EvalRow {
  /** Cache policy; `full` keeps everything. */
  readonly policy: string
  /** Kept fraction of the full cache. */
  readonly budget: number
  readonly task: string
  readonly length: number
  /** Examples. */
  readonly n: number
  /** Mean score of the examples, 0 to 1. */
  readonly accuracy: number
  /** Bytes of keys and values in use at the end of an example, mean. */
  readonly kv_bytes: number
}

export interface EvalOptions {
  readonly files: readonly string[]
  /** Most examples of each task and length: the first ones. Default: all. */
  readonly limit?: number
  readonly lengths?: readonly number[]
  readonly tasks?: readonly string[]
  readonly onProgress?: (done: number, of: number) => void
  readonly onRow?: (row: EvalRow) => void
  readonly signal?: AbortSignal
}

/** @throws KvasirError INVALID_ARGUMENT for files that are not of the format, CONTEXT_OVERFLOW, ABORTED */
export async function evaluate(engine: EngineApi, options: EvalOptions): Promise<EvalRow[]> {
  const cells = group(options.files.flatMap(readExamples), options)
  const total = [...cells.values()].reduce((sum, list) => sum + list.length, 0)
  const rows: EvalRow[] = []
  let done = 0
  for (const examples of cells.values()) {
    let score = 0
    let bytes = 0
    for (const example of examples) {
      const played = await play(engine, example, options.signal)
      score += played.score
      bytes += played.tokens * engine.info.kvBytesPerToken
      options.onProgress?.(++done, total)
    }
    const { task, length } = examples[0]!
    const n = examples.length
    const kv_bytes = Math.round(bytes / n)
    const row = { policy: 'full', budget: 1, task, length, n, accuracy: score / n, kv_bytes }
    rows.push(row)
    options.onRow?.(row)
  }
  return rows
}

function group(examples: readonly EvalExample[], { limit, lengths, tasks }: EvalOptions): Map<string, EvalExample[]> {
  const cells = new Map<string, EvalExample[]>()
  for (const e of examples) {
    if ((lengths && !lengths.includes(e.length)) || (tasks && !tasks.includes(e.task))) continue
    const key = `${e.task} ${e.length}`
    const cell = cells.get(key) ?? []
    cells.set(key, cell)
    if (cell.length < (limit ?? Number.POSITIVE_INFINITY)) cell.push(e)
  }
  return cells
}

/** Plays the turns of one example; mean score of its user turns, and the tokens that the last one had in the cache. */
async function play(
  engine: EngineApi,
  example: EvalExample,
  signal?: AbortSignal,
): Promise<{ readonly score: number; readonly tokens: number }> {
  const scores: number[] = []
  let tokens = 0
  for (const [i, message] of example.messages.entries()) {
    if (message.role !== 'user') continue
    const messages = example.messages.slice(0, i + 1)
    let reply = ''
    const sampling = { temperature: 0 }
    const request = { messages, sampling, maxTokens: example.maxTokens, ...(signal ? { signal } : {}) }
    for await (const part of engine.generate(request)) {
      reply += part.text
      if (part.kind === 'end') tokens = part.timings.prompt_tokens + part.timings.generated_tokens
    }
    const wanted = example.answers[scores.length]!
    scores.push(wanted.filter((answer) => reply.includes(answer)).length / wanted.length)
  }
  return { score: scores.reduce((a, b) => a + b, 0) / scores.length, tokens }
}
