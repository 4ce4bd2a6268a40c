/** `kvasir bench`: the programs in `bench/`, loaded only when asked for. */
import { type Command, Option } from 'commander'
import type { ExactnessRow } from '../../bench/exactness.ts'
import type { ParityRow } from '../../bench/parity.ts'
import type { SpeedRow } from '../../bench/speed.ts'
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import { KvasirError, nearest } from '../contract/errors.ts'
import type { LoweringName } from '../executor/lower/lowering.ts'
import { GGML_TYPES, type GgmlType } from '../ggml/types.ts'
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

const list = (flags: string, help: string) => new Option(flags, `${help}; several with commas`).argParser(collectList)
const rowsJson = () => jsonOption('print { "rows": [...] } at the end instead of a table')
const typeOption = (all: string) => list('--type <names>', `quantisations of the weights (default: ${all})`)

export const parityOptions = (): Option[] => [
  list('-m, --model <names>', 'house, or shapes of bench/parity.ts (default: all)'),
  typeOption('f16,q8_0,q4_0,q4_K'),
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

export function addBench(program: Command): void {
  const bench = program.command('bench').description('measure this engine against libllama on the same files')
  const parity = bench.command('parity').description("are the logits libllama's? Prompts, then greedy steps")
  addOptions(parity.action(runParity), parityOptions())
  const speed = bench.command('speed').description('prefill and decode speed, taking turns with libllama')
  addOptions(speed.action(runSpeed), speedOptions())
  const exactness = bench.command('exactness').description('how far attention is from exact arithmetic, and libllama')
  addOptions(exactness.action(runExactness), exactnessOptions())
}

async function runParity({ json, model, type, lowering, threads }: Flags): Promise<void> {
  const { PARITY_SHAPES, parity } = await import('../../bench/parity.ts')
  const table = new Table<ParityRow>([
    { title: 'model', width: 16, left: true, show: (r) => r.model },
    { title: 'type', width: 5, left: true, show: (r) => r.type },
    { title: 'max |logit diff|', width: 16, show: (r) => exponential(r.max_abs_logit_diff) },
    { title: 'logit range', width: 11, show: (r) => r.logit_range.toFixed(2) },
    { title: 'greedy agree', width: 12, show: (r) => `${r.greedy_agree}/${r.greedy_of}` },
  ])
  const models = known('--model', model, ['house', ...Object.keys(PARITY_SHAPES)])
  const options = given({ models, types: types(type), lowering, threads })
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
