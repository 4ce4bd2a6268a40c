/**
 * `kvasir bench policies`: what a policy costs and what it saves. One long prompt of random tokens; the full cache and each policy
 * take turns with it.
 *
 *   prefill_ms     of the prompt with the full cache, once, nothing stored
 *   policy_ms      looking at the prompt's end, planning and dropping rows. Of policies that read the prompt in another way (column
 *                  sums, stages of layers), and so cannot start behind a stored prefix: their prefill less the full one's
 *   overhead       policy_ms over prefill_ms
 *   decode_tok_s   of the answer behind the compressed prompt, the policy's work in the answer included; `ratio` is over the full
 *                  cache's, median of pairs of runs that take turns
 *   kv_bytes       held at the end of the answer, from the store
 */
import { availableParallelism } from 'node:os'
import { LocalEngine } from '../src/engine/local.ts'
import { modelPath } from '../src/engine/options.ts'
import type { GenerateRequest, Timings } from '../src/engine/request.ts'
import { OWN } from '../src/eval/treatments.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import { choosePolicy } from '../src/policies/index.ts'
import { randomTokens } from './cache.ts'
import { randomModelFile } from './cache-folder.ts'
import { median, SPEED_SHAPES } from './speed.ts'

export interface PolicyRow {
  readonly policy: string
  readonly budget: number | string
  readonly context: number
  readonly prefill_ms: number
  readonly policy_ms: number
  readonly overhead: number
  readonly decode_tok_s: number
  readonly full_decode_tok_s: number
  readonly ratio: number
  readonly kv_bytes: number
  readonly kv_bytes_full: number
}

export interface PolicyOptions {
  /** `house` or a name of {@link SPEED_SHAPES}. Default qwen2.5-0.5b. */
  readonly shape?: string
  /** Default q8_0. */
  readonly type?: GgmlType
  /** Default: those that need no calibration, which random weights have none of. */
  readonly policies?: readonly string[]
  /** Default 0.125. */
  readonly budget?: number | string
  /** Tokens of the prompt. Default 8192. */
  readonly contexts?: readonly number[]
  /** Tokens of an answer, 2 or more. Some policies round rows now and then in it: that is in its speed. Default 33. */
  readonly answer?: number
  /** Pairs of runs. Default 3. */
  readonly rounds?: number
  readonly threads?: number
  readonly onRow?: (row: PolicyRow) => void
  readonly onNote?: (note: string) => void
}

export const DEFAULT_POLICIES = ['snapkv', 'pyramidkv', 'ada-kv', 'cake', 'streaming-llm', 'tova', 'h2o', 'lacache']
const ANSWER = 33

export async function policies(options: PolicyOptions = {}): Promise<PolicyRow[]> {
  const names = options.policies ?? DEFAULT_POLICIES
  for (const name of names) choosePolicy(name)
  const rows: PolicyRow[] = []
  for (const context of options.contexts ?? [8192]) rows.push(...(await rowsAt(context, names, options)))
  return rows
}

async function rowsAt(context: number, names: readonly string[], options: PolicyOptions): Promise<PolicyRow[]> {
  const { budget = 0.125, rounds = 3, threads = availableParallelism(), answer = ANSWER, onNote } = options
  const engine = await LocalEngine.load(await modelFile(options), { threads, contextLength: context + 2 * answer })
  try {
    const tokens = randomTokens(engine, context, context)
    const ask = (request: Partial<GenerateRequest>) => timingsOf(engine, { tokens, maxTokens: answer, ...request })
    // First runs do not count: page faults, graphs, thread counts.
    await ask({ tokens: tokens.slice(0, 512) })
    await engine.clearCache()
    onNote?.(`computing ${context} rows`)
    const { prompt_ms: prefillMs } = await ask({})
    const rows: PolicyRow[] = []
    for (const policy of names) {
      onNote?.(policy)
      const pairs: { readonly ours: Timings; readonly full: Timings }[] = []
      const { takesBudget } = choosePolicy(policy).definition
      const request = takesBudget === false ? { policy } : { policy, budget }
      for (let i = 0; i < rounds; i++) pairs.push({ full: await ask({}), ours: await ask(request) })
      const { ours } = pairs[0]!
      const policyMs = ours.cached_tokens > 0 ? median(pairs.map((p) => p.ours.policy_ms)) : ours.prompt_ms - prefillMs
      const row: PolicyRow = {
        ...{
          policy,
          budget: takesBudget === false ? OWN : budget,
          context,
          prefill_ms: prefillMs,
          policy_ms: policyMs,
          overhead: policyMs / prefillMs,
        },
        decode_tok_s: median(pairs.map((p) => speed(p.ours))),
        full_decode_tok_s: median(pairs.map((p) => speed(p.full))),
        ratio: median(pairs.map((p) => speed(p.ours) / speed(p.full))),
        ...{ kv_bytes: ours.kv_bytes, kv_bytes_full: ours.kv_bytes_full },
      }
      rows.push(row)
      options.onRow?.(row)
    }
    return rows
  } finally {
    await engine.dispose()
  }
}

/** The first token comes with the prompt. */
function speed({ generated_tokens, generated_ms }: Timings): number {
  return ((generated_tokens - 1) / generated_ms) * 1000
}

async function timingsOf(engine: LocalEngine, request: Partial<GenerateRequest>): Promise<Timings> {
  const greedy = { sampling: { temperature: 0 }, ignoreEnd: true }
  for await (const part of engine.generate({ ...greedy, ...request })) if (part.kind === 'end') return part.timings
  throw new Error('an answer had no end')
}

/** The file of a shape, random weights written on first use; or of the house model. */
async function modelFile({ shape = 'qwen2.5-0.5b', type = 'q8_0', onNote }: PolicyOptions): Promise<string> {
  if (shape === 'house') return modelPath('house')
  const known = SPEED_SHAPES[shape]
  if (!known)
    throw new RangeError(`no model shape "${shape}"; there are house, ${Object.keys(SPEED_SHAPES).join(', ')}`)
  return await randomModelFile({ ...known, name: `speed-${shape}`, type }, (p) => onNote?.(`writing ${p} (once)`))
}
