/**
 * Accuracy of a model on cells of examples, greedy: several examples at a time, which the engine batches. An example's steps
 * run one after the other, so each finds the last one's rows in the cache.
 */
import type { EngineApi } from '../engine/api.ts'
import type { Timings } from '../engine/request.ts'
import type { Cell, Playable } from './cells.ts'
import { type History, type Mode, messagesOf, promptOf } from './plan.ts'
import { score } from './score.ts'

/** Names are those of the JSON lines that `kvasir eval --out` writes. */
export interface EvalRow {
  /** Cache policy; `full` keeps everything. */
  readonly policy: string
  /** Kept fraction of the full cache. */
  readonly budget: number
  readonly task: string
  readonly length: number
  readonly mode: Mode
  /** Examples. */
  readonly n: number
  /** Mean score of the examples, 0 to 1. */
  readonly accuracy: number
  /** Mean score of the i-th questions, of the examples that have one. */
  readonly accuracy_by_turn: readonly number[]
  /** [n]: to compare policies example by example. */
  readonly scores: readonly number[]
  /** Mean time to the first token of an example's first reply. Others share the machine: see `concurrency`. */
  readonly ttft_ms: number
  /** Tokens per second of one reply, mean over all tokens. Others share the machine, too. */
  readonly decode_tok_s: number
  /** Keys and values of an example's last prompt and reply, mean: computed from their tokens, not read from the store. */
  readonly kv_bytes: number
  /** The same, had everything been kept. */
  readonly kv_bytes_full: number
  readonly model: string
  readonly history: History
  readonly seed: number | null
}

export interface EvalOptions {
  /** Examples that run at once. Default 4: so many contexts the engine has room for by default. */
  readonly concurrency?: number
  /** Ask without a chat template, for models that have none. Default false. */
  readonly raw?: boolean
  /** Rows that exist already, for cells that are not to be run again. */
  readonly finished?: (cell: Cell) => EvalRow | undefined
  /** Examples, of the cells that are run. */
  readonly onProgress?: (done: number, of: number) => void
  /** As cells end; finished ones are not told. */
  readonly onRow?: (row: EvalRow) => void
  readonly signal?: AbortSignal
}

/** What an example came to. */
interface Played {
  /** Of each turn. */
  readonly scores: readonly number[]
  /** Of each step. */
  readonly timings: readonly Timings[]
}

/** Rows in the order of the cells. @throws KvasirError CONTEXT_OVERFLOW, ABORTED, and what writing an example throws */
export async function evaluate(
  engine: EngineApi,
  cells: readonly Cell[],
  options: EvalOptions = {},
): Promise<EvalRow[]> {
  const { concurrency = 4, raw = false, finished, onProgress, onRow } = options
  const rows = cells.map((cell) => finished?.(cell))
  const open = cells.flatMap((cell, at) => (rows[at] ? [] : [{ cell, at, played: new Map<number, Played>() }]))
  const work = open.flatMap((entry) => Array.from({ length: entry.cell.n }, (_, i) => ({ ...entry, i })))
  let done = 0
  await inParallel(work, concurrency, options.signal, async ({ cell, at, played, i }, signal) => {
    played.set(i, await play(engine, cell.example(i), raw, signal))
    onProgress?.(++done, work.length)
    if (played.size < cell.n) return
    const inOrder = Array.from({ length: cell.n }, (_, j) => played.get(j)!)
    const row = rowOf(engine, cell, inOrder)
    rows[at] = row
    onRow?.(row)
  })
  return rows.filter((row) => row !== undefined)
}

/** Greedy replies, turn by turn. */
async function play(engine: EngineApi, { steps, turns }: Playable, raw: boolean, signal: AbortSignal): Promise<Played> {
  const replies: string[] = []
  const timings: Timings[] = []
  for (const [i, { pieces }] of steps.entries()) {
    const prompt = raw ? { prompt: promptOf(pieces, replies) } : { messages: messagesOf(pieces, replies) }
    let reply = ''
    for await (const part of engine.generate({
      ...prompt,
      sampling: { temperature: 0 },
      maxTokens: turns[i]!.maxTokens,
      signal,
    })) {
      reply += part.text
      if (part.kind === 'end') timings.push(part.timings)
    }
    replies.push(reply.trim())
  }
  return { scores: turns.map((turn, i) => score(replies[i]!, turn)), timings }
}

function rowOf(engine: EngineApi, cell: Cell, played: readonly Played[]): EvalRow {
  const { task, length, mode, history, seed, n } = cell
  const { kvBytesPerToken, name } = engine.info
  const scores = played.map((p) => mean(p.scores))
  const all = played.flatMap((p) => p.timings)
  const tokens = (t: Timings) => t.prompt_tokens + t.generated_tokens
  const bytes = Math.round(mean(played.map((p) => tokens(p.timings.at(-1)!))) * kvBytesPerToken)
  const turns = Math.max(...played.map((p) => p.scores.length))
  return {
    policy: 'full',
    budget: 1,
    task,
    length,
    mode,
    n,
    accuracy: mean(scores),
    accuracy_by_turn: Array.from({ length: turns }, (_, i) => mean(played.flatMap((p) => p.scores[i] ?? []))),
    scores,
    ttft_ms: mean(played.map((p) => p.timings[0]!.ttft_ms)),
    decode_tok_s:
      (1000 * sum(all.map((t) => t.generated_tokens))) / Math.max(1e-3, sum(all.map((t) => t.generated_ms))),
    kv_bytes: bytes,
    kv_bytes_full: bytes,
    model: name,
    history,
    seed,
  }
}

/** A failure stops the rest, and is thrown when they have ended. */
async function inParallel<T>(
  work: readonly T[],
  workers: number,
  outer: AbortSignal | undefined,
  run: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const stop = new AbortController()
  const signal = outer ? AbortSignal.any([outer, stop.signal]) : stop.signal
  const queue = work.values()
  const failures: unknown[] = []
  const worker = async () => {
    // All workers draw from one iterator, so each item is taken once.
    for (const item of queue) {
      if (failures.length > 0) return
      try {
        await run(item, signal)
      } catch (error) {
        failures.push(error)
        stop.abort(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(workers, work.length) }, worker))
  if (failures.length > 0) throw failures[0]
}

const sum = (of: readonly number[]) => of.reduce((a, b) => a + b, 0)
const mean = (of: readonly number[]) => sum(of) / of.length
