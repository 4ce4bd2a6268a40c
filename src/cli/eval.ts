/** `kvasir eval`: accuracy on generated tasks, or on evaluation sets in files, under one cache policy or several. */
import { type Command, Option } from 'commander'
import { KvasirError, nearest, showBytes } from '../contract/errors.ts'
import type { Cell, TreatmentOptions } from '../eval/cells.ts'
import type { Refusal } from '../eval/evaluate.ts'
import { COMPRESS_AT, type CompressAt, HISTORIES, type History, MODES, type Mode } from '../eval/plan.ts'
import type { EvalRow } from '../eval/row.ts'
import { interruptible } from './interrupt.ts'
import { loadEngine, modelFile } from './model.ts'
import {
  addOptions,
  collectList,
  type EngineFlags,
  engineOptions,
  given,
  jsonOption,
  MODEL_HELP,
  toNumber,
} from './options.ts'
import { countBar, noProgress } from './progress.ts'
import { Table } from './table.ts'

const LENGTHS = [512, 1024, 2048, 4096, 8192]
const EXAMPLES = 25
const BUDGETS = [0.5, 0.25, 0.125]
/** Tokens beside the context: the questions and replies of all turns. */
const TURNS_ROOM = 2048

interface Flags extends EngineFlags {
  readonly data?: string[]
  readonly model: string
  readonly tasks?: string[]
  readonly lengths?: string[]
  readonly limit?: number
  readonly seed: number
  readonly policies?: string[]
  readonly budgets?: string[]
  readonly compressAt?: string[]
  readonly sharedPrompts?: true
  readonly mode?: string[]
  readonly history: History
  readonly concurrency: number
  readonly raw?: true
  readonly out?: string
  readonly json?: true
}

export const evalOptions = (): Option[] => [
  new Option('-m, --model <model>', MODEL_HELP).default('house'),
  new Option(
    '--tasks <names>',
    'only these tasks; house and scbench: all of that family; prose: how far predictions move from those of the full ' +
      'cache; several with commas',
  ).argParser(collectList),
  new Option(
    '--lengths <tokens>',
    `lengths of the contexts, several with commas (default: ${LENGTHS.join(',')}; with --data: all)`,
  ).argParser(collectList),
  new Option(
    '--limit <n>',
    `examples of each task and length (default: ${EXAMPLES}; with --data at most so many, default: all)`,
  ).argParser(toNumber),
  new Option('--seed <n>', 'seed of the first example of each task and length').argParser(toNumber).default(0),
  new Option(
    '--policies <names>',
    'cache policies, several with commas: full,snapkv,"cake?gamma=100"; and types?k=q8_0&v=q8_0 for a quantised cache ' +
      '(default: full)',
  ).argParser(collectList),
  new Option(
    '--budgets <sizes>',
    `what each of them may keep, if it takes a budget: fractions of the full cache, 512t for tokens, 64MiB (default: ${BUDGETS.join(',')})`,
  ).argParser(collectList),
  new Option(
    '--compress-at <moments>',
    'what policies see when they shorten the cache: question: the first question, too; context: the context alone; default: ' +
      'question in multi-turn, context in multi-request; several with commas (default: default)',
  ).argParser(collectList),
  new Option(
    '--shared-prompts',
    'compute each prompt once for all policies: several times faster, but TTFT is that of the full cache alone',
  ),
  new Option(
    '--mode <names>',
    "multi-turn: an example's questions in one conversation; multi-request: each alone; several with commas (default: " +
      'multi-turn)',
  ).argParser(collectList),
  new Option('--history <name>', 'replies that later turns see: golden: right ones; own: those that the model gave')
    .choices(HISTORIES)
    .default('golden'),
  new Option('--data <files...>', 'JSON lines instead of generated tasks: {task, length, messages, answers, metric}'),
  new Option('--concurrency <n>', 'examples that run at once; times of rows are of shared work')
    .argParser(toNumber)
    .default(4),
  new Option('--raw', 'ask without a chat template, for models that have none'),
  new Option('--out <file>', 'add rows to this file of JSON lines as they come; what is in it is not run again'),
  jsonOption('print { "rows": [...] } instead of a table'),
]

export function addEval(program: Command): void {
  const command = program
    .command('eval')
    .description('accuracy on generated long-context tasks, or on your own sets, greedy, under cache policies')
    .action(run)
  addOptions(command, evalOptions(), engineOptions())
}

const percent = (share: number | null) => (share === null ? '-' : `${(100 * share).toFixed(0)} %`)

const table = new Table<EvalRow>([
  { title: 'policy', width: 13, left: true, show: (r) => r.policy },
  { title: 'budget', width: 6, show: (r) => String(r.budget) },
  { title: 'seen', width: 8, left: true, show: (r) => r.compress_at ?? '-' },
  { title: 'task', width: 15, left: true, show: (r) => r.task },
  { title: 'mode', width: 13, left: true, show: (r) => r.mode },
  { title: 'length', width: 6, show: (r) => String(r.length) },
  { title: 'n', width: 4, show: (r) => String(r.n) },
  { title: 'accuracy', width: 8, show: (r) => percent(r.accuracy) },
  { title: 'KL', width: 6, show: (r) => (r.kl === null ? '-' : r.kl.toFixed(3)) },
  { title: 'top 1', width: 5, show: (r) => percent(r.top1) },
  { title: 'TTFT', width: 8, show: (r) => (r.ttft_ms === null ? '-' : `${r.ttft_ms.toFixed(0)} ms`) },
  { title: 'decode', width: 10, show: (r) => `${r.decode_tok_s.toFixed(0)} tok/s` },
  { title: 'KV cache', width: 9, show: (r) => showBytes(r.kv_bytes) },
  { title: 'held', width: 5, show: (r) => percent(r.kv_bytes / r.kv_bytes_full) },
])

async function run(flags: Flags): Promise<void> {
  const { evaluate } = await import('../eval/evaluate.ts')
  const { Results } = await import('../eval/results.ts')
  const { runFacts } = await import('../eval/row.ts')
  const { loadPolicyModule } = await import('../policies/modules.ts')
  // The engine's process loads them for itself; names and options are checked here.
  for (const file of flags.policyModule ?? []) await loadPolicyModule(file)
  checkCount('--concurrency', flags.concurrency, 1)
  const cells = await cellsOf(flags)
  const longest = Math.max(...cells.map((cell) => cell.length))
  const context = flags.data ? {} : { context: longest + TURNS_ROOM }
  await using engine = await loadEngine(flags.model, { ...context, ...flags })
  const results = flags.out === undefined ? null : new Results(flags.out, runFacts(engine.info, flags))
  const progress = flags.json && !process.stderr.isTTY ? noProgress : countBar('examples')
  const show = (text: string) => {
    if (!flags.json) process.stdout.write(text)
  }
  const refusals: Refusal[] = []
  show(table.head)
  const rows = await interruptible((signal) =>
    evaluate(engine, cells, {
      signal,
      concurrency: flags.concurrency,
      raw: flags.raw ?? false,
      sharedPrompts: flags.sharedPrompts ?? false,
      finished: (cell, treatment) => {
        const row = results?.find(cell, treatment)
        if (row) show(table.row(row))
        return row
      },
      onProgress: progress.update,
      onRow: (row) => {
        results?.add(row)
        show(table.row(row))
      },
      onRefusal: (refusal) => {
        refusals.push(refusal)
        show(`${nameOf(refusal)}  refused\n`)
      },
    }),
  ).finally(progress.end)
  if (flags.json) process.stdout.write(`${JSON.stringify({ rows, refused: refusals.map(refusedRow) })}\n`)
  for (const refusal of refusals) process.stderr.write(`refused: ${nameOf(refusal)}: ${refusal.error.message}\n`)
}

const nameOf = ({ cell, treatment }: Refusal) =>
  `${treatment.policy} ${treatment.budget}, ${cell.task} of ${cell.length}, ${cell.mode}`

function refusedRow({ cell, treatment, error }: Refusal) {
  const { policy, budget, compressAt } = treatment
  const { task, length, mode } = cell
  return { policy, budget, compress_at: compressAt, task, length, mode, reason: error.message }
}

async function cellsOf(flags: Flags): Promise<Cell[]> {
  const { data, model, tasks, limit, seed, history } = flags
  if (limit !== undefined) checkCount('--limit', limit, 1)
  for (const length of flags.lengths ?? []) checkCount('--lengths', Number(length), 1)
  const lengths = flags.lengths?.map(Number)
  const { fileCells, PROSE, proseCells, taskCells } = await import('../eval/cells.ts')
  const compared: Required<TreatmentOptions> = {
    policies: flags.policies ?? ['full'],
    budgets: flags.budgets ?? BUDGETS,
    compressAt: known<CompressAt | 'default'>('--compress-at', [...COMPRESS_AT, 'default'], flags.compressAt) ?? [
      'default',
    ],
  }
  if (data) {
    const cells = fileCells({ files: data, ...compared, ...given({ limit, lengths, tasks }) })
    if (cells.length === 0) throw invalid('the files hold no example of these tasks and lengths')
    return cells
  }
  checkCount('--seed', seed, 0)
  const { TASKS, tasksNamed } = await import('../eval/tasks/index.ts')
  const { Tokenizer } = await import('../model/tokenizer/tokenizer.ts')
  const tokenizer = await Tokenizer.load(await modelFile(model))
  const common = {
    lengths: lengths ?? LENGTHS,
    n: limit ?? EXAMPLES,
    seed,
    count: (text: string) => tokenizer.encode(text, { addSpecial: false }).length,
    ...compared,
  }
  const named = tasks?.filter((name) => name !== PROSE)
  // Alone, the full cache has nothing to be compared with.
  const withProse = tasks ? tasks.includes(PROSE) : compared.policies.some((name) => name !== 'full')
  const modes = known<Mode>('--mode', MODES, flags.mode) ?? ['multi-turn']
  return [
    ...taskCells({ ...common, tasks: named ? tasksNamed(named) : TASKS, modes, history }),
    ...(withProse ? proseCells(common) : []),
  ]
}

function known<T extends string>(
  flag: string,
  all: readonly T[],
  names: readonly string[] | undefined,
): T[] | undefined {
  const unknown = names?.find((name) => !all.includes(name as T))
  if (unknown === undefined) return names as T[] | undefined
  const near = nearest(unknown, all)
  throw invalid(`${flag}: there is no "${unknown}". ${near ? `Did you mean ${near}?` : `Known: ${all.join(', ')}`}`)
}

function checkCount(flag: string, n: number, least: number): void {
  if (!Number.isSafeInteger(n) || n < least) throw invalid(`${flag} must be whole numbers from ${least} up`)
}

const invalid = (text: string) => new KvasirError('INVALID_ARGUMENT', text)
