/** `kvasir bench`: the programs in `bench/`, loaded only when asked for. */
import { type Command, Option } from 'commander'
import type { AttentionRow, HeadShape } from '../../bench/attention.ts'
import type { BatchRow } from '../../bench/batch.ts'
import type { CacheRow } from '../../bench/cache.ts'
import type { CacheTypesRow, TypePair } from '../../bench/cache-types.ts'
import type { ExactnessRow } from '../../bench/exactness.ts'
import type { PackingRow } from '../../bench/packing.ts'
import type { ParityRow } from '../../bench/parity.ts'
import type { PolicyRow } from '../../bench/policies.ts'
import type { SpeedRow } from '../../bench/speed.ts'
import type { StallRow } from '../../bench/stall.ts'
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import { KvasirError, nearest } from '../contract/errors.ts'
import type { LoweringName } from '../executor/lower/lowering.ts'
import { GGML_TYPES, type GgmlType } from '../ggml/types.ts'
import { addBenchServe } from './bench-serve.ts'
import { addOptions, collectList, given, jsonOption, loweringOption, threadsOption, toNumber } from './options.ts'
import { Table } from './table.ts'

interface Flags {
  readonly json?: true
  readonly model?: string[]
  readonly shape?: string[]
  readonly type?: string[]
  readonly context?: string[]
  readonly cacheType?: CacheType
  readonly cacheTypes?: string[]
  readonly keys?: string[]
  readonly queries?: string[]
  readonly lowering?: LoweringName
  readonly threads?: number
  readonly rounds?: number
}

interface ServingFlags {
  readonly json?: true
  readonly shape?: string
  readonly type?: string
  readonly context?: string[]
  readonly sharedPrefix?: number
  readonly promptTokens?: number
  readonly tokenBudget?: number
  readonly rounds?: number
  readonly threads?: number
}

interface BatchFlags extends ServingFlags {
  readonly sequences?: string[]
  readonly lowering?: LoweringName
}

interface CacheTypesFlags extends ServingFlags {
  readonly types?: string[]
  readonly lowering?: LoweringName
}

interface PackingFlags extends ServingFlags {
  readonly prompts?: string[]
}

interface PolicyFlags extends ServingFlags {
  readonly policies?: string[]
  readonly budget?: string
  readonly answer?: number
}

interface AttentionFlags {
  readonly json?: true
  readonly heads?: string[]
  readonly rows?: string[]
  readonly threads?: string[]
  readonly rounds?: number
}

const list = (flags: string, help: string) => new Option(flags, `${help}; several with commas`).argParser(collectList)
const rowsJson = () => jsonOption('print { "rows": [...] } at the end instead of a table')
const typeOption = (all: string) => list('--type <names>', `quantisations of the weights (default: ${all})`)

export const parityOptions = (): Option[] => [
  list('-m, --model <names>', 'house, or shapes of bench/parity.ts (default: all)'),
  typeOption('f16,q8_0,q4_0,q4_K'),
  list('--cache-types <types>', 'types of cached keys and values (default: f16)'),
  loweringOption(),
  threadsOption(),
  rowsJson(),
]

export const speedOptions = (): Option[] => [
  list('--shape <names>', 'house, or shapes of bench/speed.ts (default: all)'),
  typeOption('q8_0,q4_0'),
  list('-c, --context <tokens>', 'prompt lengths (default: 512,4096)'),
  new Option('--cache-type <type>', 'type of cached keys and values (default: f16)').choices(CACHE_TYPES),
  loweringOption(),
  threadsOption(),
  new Option('--rounds <n>', 'pairs of runs per figure (default: 3 for long runs to 21 for short ones)').argParser(
    toNumber,
  ),
  rowsJson(),
]

export const exactnessOptions = (): Option[] => [
  list('-k, --keys <counts>', 'cached rows (default: 512,8192,32768)'),
  list('--queries <counts>', 'queries of a step: 1 decodes, more are a chunk of a prompt (default: 1 and a tile)'),
  list('--cache-types <types>', `types of cached keys and values (default: f16,bf16,f32,q8_0)`),
  threadsOption(),
  rowsJson(),
]

export const cacheOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/speed.ts (default: qwen2.5-0.5b)'),
  new Option('--type <name>', 'quantisation of the weights (default: q8_0)'),
  list('-c, --context <tokens>', 'prompt lengths (default: 2048,8192,32768)'),
  new Option('--shared-prefix <tokens>', 'of the prompt that eight chats share (default: 4096)').argParser(toNumber),
  threadsOption(),
  rowsJson(),
]

export const stallOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/stall.ts (default: llama-3.2-1b-2layers)'),
  new Option('--type <name>', 'quantisation of the weights (default: q8_0)'),
  new Option('--prompt-tokens <n>', 'length of the prompts that come in (default: 8192)').argParser(toNumber),
  new Option('--token-budget <rows>', 'of sarathi-serve (default: the most that keeps its aim, measured)').argParser(
    toNumber,
  ),
  new Option('--rounds <n>', 'prompts per scheduler (default: 2)').argParser(toNumber),
  threadsOption(),
  rowsJson(),
]

export const batchOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/speed.ts (default: qwen2.5-0.5b)'),
  new Option('--type <name>', 'quantisation of the weights (default: q8_0)'),
  list('--sequences <counts>', 'sequences that decode together (default: 1,2,4,8,16)'),
  list('-c, --context <tokens>', 'tokens in the cache of each (default: 1024,4096)'),
  loweringOption(),
  new Option('--rounds <n>', 'pairs of runs per figure (default: 5)').argParser(toNumber),
  threadsOption(),
  rowsJson(),
]

export const cacheTypesOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/speed.ts (default: qwen2.5-0.5b)'),
  new Option('--type <name>', 'quantisation of the weights (default: q8_0)'),
  list(
    '--types <pairs>',
    'types of cached keys and values, as q8_0:q4_0 (default: f16:f16,q8_0:q8_0,q8_0:q4_0,q4_0:q4_0,q5_1:q5_1,iq4_nl:iq4_nl)',
  ),
  list('-c, --context <tokens>', 'tokens in the cache (default: 2048,8192,32768)'),
  loweringOption(),
  new Option('--rounds <n>', 'pairs of runs per figure (default: 3 for long runs to 21 for short ones)').argParser(
    toNumber,
  ),
  threadsOption(),
  rowsJson(),
]

export const packingOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/packing.ts (default: house)'),
  new Option('--type <name>', 'quantisation of random weights (default: q8_0)'),
  list('--prompts <counts>', 'prompts that come at once, at most 256 (default: 16,32)'),
  new Option('--rounds <n>', 'runs per figure (default: 3)').argParser(toNumber),
  threadsOption(),
  rowsJson(),
]

export const attentionOptions = (): Option[] => [
  list('--heads <shapes>', 'query heads/KV heads/head size (default: 14/2/64,32/8/64,32/8/128,16/16/64)'),
  list('--rows <counts>', 'cached rows, multiples of 256 (default: 1024,4096,16384)'),
  list('-t, --threads <counts>', 'compute threads (default: 1,2)'),
  new Option('--rounds <n>', 'samples per figure (default: 5)').argParser(toNumber),
  rowsJson(),
]

export const policiesOptions = (): Option[] => [
  new Option('--shape <name>', 'house, or a shape of bench/speed.ts (default: qwen2.5-0.5b)'),
  new Option('--type <name>', 'quantisation of the weights (default: q8_0)'),
  list('--policies <names>', 'cache policies (default: those that need no calibration)'),
  new Option('--budget <size>', 'what they may keep (default: 0.125)'),
  list('-c, --context <tokens>', 'lengths of the prompt (default: 8192)'),
  new Option('--answer <tokens>', 'length of the answer (default: 33)').argParser(toNumber),
  new Option('--rounds <n>', 'pairs of runs per figure (default: 3)').argParser(toNumber),
  threadsOption(),
  rowsJson(),
]

export function addBench(program: Command): void {
  const bench = program.command('bench').description('measure this engine against libllama on the same files')
  const parity = bench.command('parity').description("are the logits libllama's? Prompts, then greedy steps")
  addOptions(parity.action(runParity), parityOptions())
  const speed = bench.command('speed').description('prefill and decode speed, taking turns with libllama')
  addOptions(speed.action(runSpeed), speedOptions())
  const exactness = bench.command('exactness').description('how far attention is from exact arithmetic, and libllama')
  addOptions(exactness.action(runExactness), exactnessOptions())
  const cache = bench.command('cache').description('what stored prefixes save: time to first token, and memory')
  addOptions(cache.action(runCache), cacheOptions())
  const stall = bench.command('stall').description('gaps of running answers while long prompts come in, by scheduler')
  addOptions(stall.action(runStall), stallOptions())
  const batch = bench.command('batch').description('sequences that decode together, taking turns with libllama')
  addOptions(batch.action(runBatch), batchOptions())
  const cacheTypes = bench.command('cache-types').description('speed and bytes by the types of cached keys and values')
  addOptions(cacheTypes.action(runCacheTypes), cacheTypesOptions())
  const packing = bench.command('packing').description('prompts of mixed length at once: packed, padded, ragged')
  addOptions(packing.action(runPacking), packingOptions())
  const attention = bench.command('attention').description('decode attention by how it reads the cache')
  addOptions(attention.action(runAttention), attentionOptions())
  const policies = bench.command('policies').description('what cache policies cost, and what they save')
  addOptions(policies.action(runPolicies), policiesOptions())
  addBenchServe(bench)
}

async function runPolicies(flags: PolicyFlags): Promise<void> {
  const { json, shape, type, policies: names, budget, context, answer, rounds, threads } = flags
  const { policies } = await import('../../bench/policies.ts')
  const { SPEED_SHAPES } = await import('../../bench/speed.ts')
  const table = new Table<PolicyRow>([
    { title: 'policy', width: 22, left: true, show: (r) => r.policy },
    { title: 'budget', width: 6, show: (r) => String(r.budget) },
    { title: 'context', width: 7, show: (r) => String(r.context) },
    { title: 'prefill ms', width: 10, show: (r) => r.prefill_ms.toFixed(0) },
    { title: 'policy ms', width: 9, show: (r) => r.policy_ms.toFixed(0) },
    { title: 'overhead', width: 8, show: (r) => `${(100 * r.overhead).toFixed(1)} %` },
    { title: 'decode tok/s', width: 12, show: (r) => r.decode_tok_s.toFixed(1) },
    { title: 'full tok/s', width: 10, show: (r) => r.full_decode_tok_s.toFixed(1) },
    { title: 'ratio', width: 6, show: (r) => r.ratio.toFixed(2) },
    { title: 'kv bytes', width: 10, show: (r) => String(r.kv_bytes) },
    { title: 'of full', width: 7, show: (r) => (r.kv_bytes / r.kv_bytes_full).toFixed(3) },
  ])
  known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(SPEED_SHAPES)])
  if (rounds !== undefined) whole('--rounds', rounds)
  if (answer !== undefined && whole('--answer', answer) === 1)
    throw new KvasirError('INVALID_ARGUMENT', '--answer is 1; the first token comes with the prompt: give 2 or more')
  const options = given({
    ...{ shape, policies: names, budget, answer, rounds, threads },
    type: types(type === undefined ? undefined : [type])?.[0],
    contexts: context?.map((c) => whole('--context', Number(c))),
  })
  await report(json, table, (onRow) => policies({ ...options, onRow, onNote: toStderr }))
}

async function runParity({ json, model, type, cacheTypes, lowering, threads }: Flags): Promise<void> {
  const { PARITY_SHAPES, parity } = await import('../../bench/parity.ts')
  const table = new Table<ParityRow>([
    { title: 'model', width: 16, left: true, show: (r) => r.model },
    { title: 'type', width: 5, left: true, show: (r) => r.type },
    { title: 'cache', width: 6, left: true, show: (r) => r.cache_type },
    { title: 'max |logit diff|', width: 16, show: (r) => exponential(r.max_abs_logit_diff) },
    { title: 'logit range', width: 11, show: (r) => r.logit_range.toFixed(2) },
    { title: 'greedy agree', width: 12, show: (r) => `${r.greedy_agree}/${r.greedy_of}` },
  ])
  const models = known('--model', model, ['house', ...Object.keys(PARITY_SHAPES)])
  const options = given({
    ...{ models, types: types(type), lowering, threads },
    cacheTypes: known('--cache-types', cacheTypes, CACHE_TYPES) as CacheType[] | undefined,
  })
  await report(json, table, (onRow) => parity({ ...options, onRow }))
}

async function runSpeed({ json, shape, type, context, cacheType, lowering, threads, rounds }: Flags): Promise<void> {
  const { SPEED_SHAPES, speed } = await import('../../bench/speed.ts')
  const table = new Table<SpeedRow>([
    { title: 'model', width: 20, left: true, show: (r) => r.model },
    { title: 'metric', width: 7, left: true, show: (r) => r.metric },
    { title: 'context', width: 7, show: (r) => String(r.context) },
    { title: 'kvasir tok/s', width: 12, show: (r) => r.ours_tok_s.toFixed(1) },
    { title: 'libllama tok/s', width: 14, show: (r) => r.peer_tok_s.toFixed(1) },
    { title: 'ratio', width: 6, show: (r) => r.ratio.toFixed(3) },
    { title: 'outside compute', width: 15, show: (r) => `${(100 * r.outside_compute_fraction).toFixed(2)} %` },
  ])
  const shapes = known('--shape', shape, ['house', ...Object.keys(SPEED_SHAPES)])
  const contexts = context?.map((c) => whole('--context', Number(c)))
  if (rounds !== undefined) whole('--rounds', rounds)
  const options = given({ shapes, types: types(type), contexts, cacheType, lowering, threads, rounds })
  const onNote = (note: string) => void process.stderr.write(`${note}\n`)
  await report(json, table, (onRow) => speed({ ...options, onRow, onNote }))
}

async function runExactness({ json, keys, queries, cacheTypes, threads }: Flags): Promise<void> {
  const { exactness } = await import('../../bench/exactness.ts')
  const table = new Table<ExactnessRow>([
    { title: 'keys', width: 6, show: (r) => String(r.keys) },
    { title: 'cache', width: 5, left: true, show: (r) => r.cache_type },
    { title: 'queries', width: 7, show: (r) => String(r.rows) },
    { title: 'attention', width: 9, left: true, show: (r) => r.attention },
    { title: 'lowering', width: 8, left: true, show: (r) => r.lowering },
    { title: 'max rel error', width: 13, show: (r) => exponential(r.max_rel_error) },
    { title: 'rms rel error', width: 13, show: (r) => exponential(r.rms_rel_error) },
    { title: 'libllama err / ours', width: 10, show: (r) => r.better_than_libllama.toFixed(2) },
  ])
  const options = given({
    keys: keys?.map((k) => whole('--keys', Number(k))),
    rows: queries?.map((q) => whole('--queries', Number(q))),
    cacheTypes: known('--cache-types', cacheTypes, CACHE_TYPES) as CacheType[] | undefined,
    threads,
  })
  await report(json, table, (onRow) => exactness({ ...options, onRow }))
}

async function runCache({ json, shape, type, context, sharedPrefix, threads }: ServingFlags): Promise<void> {
  const { cache } = await import('../../bench/cache.ts')
  const { SPEED_SHAPES } = await import('../../bench/speed.ts')
  const table = new Table<CacheRow>([
    { title: 'case', width: 13, left: true, show: (r) => r.case },
    { title: 'context', width: 7, show: (r) => String(r.context) },
    { title: 'cold ms', width: 9, show: (r) => r.cold_ms.toFixed(1) },
    { title: 'hit ms', width: 9, show: (r) => r.hit_ms.toFixed(1) },
    { title: 'ratio', width: 6, show: (r) => r.ratio.toFixed(2) },
    { title: 'kv bytes', width: 10, show: (r) => String(r.kv_bytes) },
    { title: 'unshared', width: 10, show: (r) => String(r.kv_bytes_unshared) },
  ])
  const [name] =
    known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(SPEED_SHAPES)]) ?? []
  const [weights] = types(type === undefined ? undefined : [type]) ?? []
  const contexts = context?.map((c) => whole('--context', Number(c)))
  if (sharedPrefix !== undefined) whole('--shared-prefix', sharedPrefix)
  const options = given({ shape: name, type: weights, contexts, sharedPrefix, threads })
  await report(json, table, (onRow) => cache({ ...options, onRow, onNote: toStderr }))
}

async function runStall(flags: ServingFlags): Promise<void> {
  const { json, shape, type, promptTokens, tokenBudget, rounds, threads } = flags
  const { STALL_SHAPES, stall } = await import('../../bench/stall.ts')
  const table = new Table<StallRow>([
    { title: 'scheduler', width: 13, left: true, show: (r) => r.scheduler },
    { title: 'gap p50 ms', width: 10, show: (r) => r.itl_p50_ms.toFixed(1) },
    { title: 'gap p99 ms', width: 10, show: (r) => r.itl_p99_ms.toFixed(1) },
    { title: 'quiet p99 ms', width: 12, show: (r) => r.quiet_itl_p99_ms.toFixed(1) },
    { title: 'first token ms', width: 14, show: (r) => r.ttft_p50_ms.toFixed(0) },
  ])
  const [name] =
    known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(STALL_SHAPES)]) ?? []
  const [weights] = types(type === undefined ? undefined : [type]) ?? []
  const numbers = { '--prompt-tokens': promptTokens, '--token-budget': tokenBudget, '--rounds': rounds }
  for (const [flag, n] of Object.entries(numbers)) if (n !== undefined) whole(flag, n)
  const options = given({ shape: name, type: weights, promptTokens, tokenBudget, rounds, threads })
  await report(json, table, (onRow) => stall({ ...options, onRow, onNote: toStderr }))
}

function toStderr(note: string): void {
  process.stderr.write(`${note}\n`)
}

async function runBatch(flags: BatchFlags): Promise<void> {
  const { json, shape, type, sequences, context, lowering, rounds, threads } = flags
  const { batch } = await import('../../bench/batch.ts')
  const { SPEED_SHAPES } = await import('../../bench/speed.ts')
  const table = new Table<BatchRow>([
    { title: 'sequences', width: 9, show: (r) => String(r.sequences) },
    { title: 'context', width: 7, show: (r) => String(r.context) },
    { title: 'kv_unified', width: 10, left: true, show: (r) => String(r.kv_unified) },
    { title: 'kvasir tok/s', width: 12, show: (r) => r.ours_tok_s.toFixed(1) },
    { title: 'libllama tok/s', width: 14, show: (r) => r.peer_tok_s.toFixed(1) },
    { title: 'ratio', width: 6, show: (r) => r.ratio.toFixed(3) },
  ])
  known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(SPEED_SHAPES)])
  const options = given({
    ...{ shape, lowering, rounds, threads },
    type: types(type === undefined ? undefined : [type])?.[0],
    sequences: sequences?.map((n) => whole('--sequences', Number(n))),
    contexts: context?.map((c) => whole('--context', Number(c))),
  })
  if (rounds !== undefined) whole('--rounds', rounds)
  const onNote = (note: string) => void process.stderr.write(`${note}\n`)
  await report(json, table, (onRow) => batch({ ...options, onRow, onNote }))
}

async function runCacheTypes(flags: CacheTypesFlags): Promise<void> {
  const { json, shape, type, types: pairs, context, lowering, rounds, threads } = flags
  const { cacheTypes } = await import('../../bench/cache-types.ts')
  const { SPEED_SHAPES } = await import('../../bench/speed.ts')
  /** Ours with f16 keys and values, once measured. */
  const plain = new Map<string, number>()
  const caseOf = (r: CacheTypesRow) => `${r.metric} ${r.context}`
  const overPlain = (r: CacheTypesRow) => {
    const speed = plain.get(caseOf(r))
    return speed === undefined ? '-' : (r.ours_tok_s / speed).toFixed(2)
  }
  const table = new Table<CacheTypesRow>([
    { title: 'keys', width: 6, left: true, show: (r) => r.type_k },
    { title: 'values', width: 6, left: true, show: (r) => r.type_v },
    { title: 'metric', width: 7, left: true, show: (r) => r.metric },
    { title: 'context', width: 7, show: (r) => String(r.context) },
    { title: 'kvasir tok/s', width: 12, show: (r) => r.ours_tok_s.toFixed(1) },
    { title: 'libllama tok/s', width: 14, show: (r) => r.peer_tok_s?.toFixed(1) ?? '-' },
    { title: 'ratio', width: 6, show: (r) => r.ratio?.toFixed(3) ?? '-' },
    { title: 'over our f16', width: 12, show: overPlain },
    { title: 'bytes/token', width: 11, show: (r) => String(r.kv_bytes_per_token) },
  ])
  known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(SPEED_SHAPES)])
  if (rounds !== undefined) whole('--rounds', rounds)
  const options = given({
    ...{ shape, lowering, rounds, threads },
    type: types(type === undefined ? undefined : [type])?.[0],
    pairs: pairs?.map(typePair),
    contexts: context?.map((c) => whole('--context', Number(c))),
  })
  await report(json, table, (onRow) =>
    cacheTypes({
      ...options,
      onRow: (row) => {
        if (row.type_k === 'f16' && row.type_v === 'f16') plain.set(caseOf(row), row.ours_tok_s)
        onRow(row)
      },
      onNote: toStderr,
    }),
  )
}

function typePair(text: string): TypePair {
  const names = text.split(':')
  if (names.length !== 2)
    throw new KvasirError('INVALID_ARGUMENT', `--types is ${text}; it must be like q8_0:q4_0, keys first`, {
      field: '--types',
    })
  const [keys, values] = known('--types', names, CACHE_TYPES) as [CacheType, CacheType]
  return { keys, values }
}

async function runPacking({ json, shape, type, prompts, rounds, threads }: PackingFlags): Promise<void> {
  const { PACKING_SHAPES, packing } = await import('../../bench/packing.ts')
  const table = new Table<PackingRow>([
    { title: 'prompts', width: 7, show: (r) => String(r.prompts) },
    { title: 'lengths', width: 10, left: true, show: (r) => r.lengths },
    { title: 'scheduler', width: 17, left: true, show: (r) => r.scheduler },
    { title: 'rows', width: 6, show: (r) => String(r.rows_computed) },
    { title: 'tokens', width: 6, show: (r) => String(r.useful_tokens) },
    { title: 'row ratio', width: 9, show: (r) => r.row_ratio.toFixed(2) },
    { title: 'pair ratio', width: 10, show: (r) => r.pair_ratio.toFixed(2) },
    { title: 'prefill ms', width: 10, show: (r) => r.prefill_ms.toFixed(0) },
    { title: 'ttft p50 ms', width: 11, show: (r) => r.ttft_p50_ms.toFixed(0) },
    { title: 'wall ratio', width: 10, show: (r) => r.wall_ratio.toFixed(2) },
    { title: 'cpu ratio', width: 9, show: (r) => r.cpu_ratio.toFixed(2) },
    { title: 'differ (ties)', width: 13, show: (r) => `${r.tokens_differ} (${r.near_ties})` },
  ])
  known('--shape', shape === undefined ? undefined : [shape], ['house', ...Object.keys(PACKING_SHAPES)])
  const options = given({
    ...{ shape, rounds, threads },
    type: types(type === undefined ? undefined : [type])?.[0],
    prompts: prompts?.map((n) => whole('--prompts', Number(n))),
  })
  if (rounds !== undefined) whole('--rounds', rounds)
  const onNote = (note: string) => void process.stderr.write(`${note}\n`)
  await report(json, table, (onRow) => packing({ ...options, onRow, onNote }))
}

async function runAttention({ json, heads, rows, threads, rounds }: AttentionFlags): Promise<void> {
  const { attention } = await import('../../bench/attention.ts')
  const table = new Table<AttentionRow>([
    { title: 'heads', width: 9, left: true, show: (r) => `${r.heads}/${r.kv_heads}/${r.head_dim}` },
    { title: 'rows', width: 6, show: (r) => String(r.rows) },
    { title: 'threads', width: 7, show: (r) => String(r.threads) },
    { title: 'how', width: 11, left: true, show: (r) => r.how },
    { title: 'ms', width: 8, show: (r) => r.ms.toFixed(3) },
    { title: 'cpu ms', width: 8, show: (r) => r.cpu_ms.toFixed(3) },
    { title: 'ratio to flash', width: 14, show: (r) => r.ratio_to_flash.toFixed(2) },
  ])
  const options = given({
    shapes: heads?.map(headShape),
    rows: rows?.map((n) => whole('--rows', Number(n))),
    threads: threads?.map((n) => whole('--threads', Number(n))),
    rounds,
  })
  if (rounds !== undefined) whole('--rounds', rounds)
  await report(json, table, (onRow) => attention({ ...options, onRow }))
}

function headShape(text: string): HeadShape {
  const [heads = 0, kvHeads = 0, headDim = 0, ...more] = text.split('/').map(Number)
  for (const n of [heads, kvHeads, headDim]) whole('--heads', n)
  if (more.length > 0 || heads % kvHeads)
    throw new KvasirError('INVALID_ARGUMENT', `--heads is ${text}; it must be like 14/2/64, the first a multiple`, {
      field: '--heads',
    })
  return { heads, kvHeads, headDim }
}

/** Rows as they come for people, all at the end for programs. */
async function report<Row>(
  json: true | undefined,
  table: Table<Row>,
  measure: (onRow: (row: Row) => void) => Promise<readonly Row[]>,
): Promise<void> {
  if (!json) process.stdout.write(table.head)
  const rows = await measure((row) => {
    if (!json) process.stdout.write(table.row(row))
  })
  if (json) process.stdout.write(`${JSON.stringify({ rows })}\n`)
}

function types(names: string[] | undefined): GgmlType[] | undefined {
  return known('--type', names, Object.keys(GGML_TYPES)) as GgmlType[] | undefined
}

function known(flag: string, names: string[] | undefined, all: readonly string[]): string[] | undefined {
  for (const name of names ?? []) {
    if (all.includes(name)) continue
    const guess = nearest(name, all)
    const mend = guess ? `did you mean ${guess}?` : `there are ${all.join(', ')}`
    throw new KvasirError('INVALID_ARGUMENT', `${flag}: there is no "${name}"; ${mend}`, { field: flag })
  }
  return names
}

function whole(flag: string, n: number): number {
  if (Number.isSafeInteger(n) && n > 0) return n
  throw new KvasirError('INVALID_ARGUMENT', `${flag} is ${n}; it must be a whole number from 1 up`, { field: flag })
}

function exponential(n: number): string {
  return n === 0 ? '0' : n.toExponential(2)
}
