/** One line of results: a task at a length, under one policy and budget. */
import { basename } from 'node:path'
import type { EngineInfo } from '../engine/api.ts'
import type { Timings } from '../engine/request.ts'
import type { Cell } from './cells.ts'
import type { EvalOptions } from './evaluate.ts'
import type { CompressAt, History, Mode } from './plan.ts'
import type { Agreement } from './score-divergence.ts'
import { isFull, type Treatment } from './treatments.ts'

/** Names are those of the JSON lines that `kvasir eval --out` writes. All keys are always there. */
export interface EvalRow {
  /** Cache policy with its options; `full` keeps everything. */
  readonly policy: string
  /** Kept fraction of the full cache, or tokens or bytes as `512t`, `1048576B`; `own`: the policy takes none. */
  readonly budget: number | string
  /** What was in the cache when the policy shortened it; null: the whole prompt, or it shortened nothing. */
  readonly compress_at: CompressAt | null
  /** Its name. */
  readonly task: string
  /** Of the context, tokens, nominal. */
  readonly length: number
  /** `forced`: the continuation is given; nothing is asked. */
  readonly mode: Mode | 'forced'
  /** Examples. */
  readonly n: number
  /** Mean score of the examples, 0 to 1; null where nothing is asked. */
  readonly accuracy: number | null
  /** Mean score of the i-th questions, of the examples that have one. */
  readonly accuracy_by_turn: readonly number[]
  /** [n]: to compare policies example by example; empty where nothing is asked. */
  readonly scores: readonly number[]
  /** Divergence from the full cache, nats a token, at least so much (score-divergence.ts); null but for prose. */
  readonly kl: number | null
  /** [n]: the same of each text. */
  readonly kl_by_example: readonly number[]
  /** Share of the places where the full cache finds the same token likeliest; null but for prose. */
  readonly top1: number | null
  /**
   * Mean time to the first token of an example's first reply. Others share the machine: see `concurrency`. Null when its prompt
   * was computed for another policy before (`sharedPrompts`).
   */
  readonly ttft_ms: number | null
  /** What of that the policy took: observing, planning, dropping rows. */
  readonly policy_ms: number
  /** Tokens per second of one reply, mean over all tokens. Others share the machine, too. */
  readonly decode_tok_s: number
  /** Keys and values held behind an example's last reply, mean, measured from the store. */
  readonly kv_bytes: number
  /** The same, had everything been kept. */
  readonly kv_bytes_full: number
  /** As the file names it. */
  readonly model: string
  /** Name of the file, which tells quantisations of one model apart. */
  readonly model_file: string
  /** Types of cached keys and values. */
  readonly type_k: string
  readonly type_v: string
  /** Asked without a chat template. */
  readonly raw: boolean
  /** Prompts were computed once for all policies. */
  readonly shared_prompts: boolean
  /** Whose replies later turns saw. */
  readonly history: History
  /** Of the first example; null: examples of a file. */
  readonly seed: number | null
}

/** What all rows of a run have in common. */
export type RunFacts = Pick<EvalRow, 'model' | 'model_file' | 'type_k' | 'type_v' | 'raw' | 'shared_prompts'>

export function runFacts(info: EngineInfo, { raw = false, sharedPrompts = false }: EvalOptions = {}): RunFacts {
  const { name, file, keyType, valueType } = info
  const types = { type_k: keyType, type_v: valueType }
  return { model: name, model_file: basename(file), ...types, raw, shared_prompts: sharedPrompts }
}

/** What an example came to. */
export interface Played {
  /** Of each turn; empty where nothing is asked. */
  readonly scores: readonly number[]
  /** Of each request. */
  readonly timings: readonly Timings[]
  /** With the full cache's predictions, over a text that is given. */
  readonly agreement: Agreement | null
}

export interface RowFacts {
  readonly cell: Cell
  readonly treatment: Treatment
  /** [n] */
  readonly played: readonly Played[]
  readonly run: RunFacts
}

export function rowOf({ cell, treatment, played, run }: RowFacts): EvalRow {
  const { task, length, mode, history, seed, n } = cell
  const { policy, budget, compressAt } = treatment
  const agreements = played.flatMap((p) => p.agreement ?? [])
  const asked = played.filter((p) => p.scores.length > 0)
  const scores = asked.map((p) => mean(p.scores))
  const turns = Math.max(0, ...asked.map((p) => p.scores.length))
  const first = played.map((p) => p.timings[0]!)
  const last = played.map((p) => p.timings.at(-1)!)
  return {
    ...{ policy, budget, compress_at: compressAt, task, length, mode, n },
    accuracy: scores.length ? mean(scores) : null,
    accuracy_by_turn: Array.from({ length: turns }, (_, i) => mean(asked.flatMap((p) => p.scores[i] ?? []))),
    scores,
    kl: agreements.length ? mean(agreements.map((a) => a.kl)) : null,
    kl_by_example: agreements.map((a) => a.kl),
    top1: agreements.length ? mean(agreements.map((a) => a.top1)) : null,
    ttft_ms: !run.shared_prompts || isFull(treatment) ? mean(first.map((t) => t.ttft_ms)) : null,
    policy_ms: mean(first.map((t) => t.policy_ms)),
    decode_tok_s: speed(played.flatMap((p) => p.timings)),
    kv_bytes: Math.round(mean(last.map((t) => t.kv_bytes))),
    kv_bytes_full: Math.round(mean(last.map((t) => t.kv_bytes_full))),
    ...{ ...run, history, seed },
  }
}

/** Tokens per second. */
function speed(timings: readonly Timings[]): number {
  const ms = sum(timings.map((t) => t.generated_ms))
  return (1000 * sum(timings.map((t) => t.generated_tokens))) / Math.max(1e-3, ms)
}

const sum = (of: readonly number[]) => of.reduce((a, b) => a + b, 0)
const mean = (of: readonly number[]) => sum(of) / of.length
