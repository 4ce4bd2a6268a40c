/** `kvasir eval`: accuracy on generated tasks, or on evaluation sets in files. */
import { type Command, Option } from 'commander'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { Cell } from '../eval/cells.ts'
import type { EvalRow } from '../eval/evaluate.ts'
import { HISTORIES, type History, MODES, type Mode } from '../eval/plan.ts'
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
/** Tokens beside the context: the questions and replies of all turns. */
const TURNS_ROOM = 2048

interface Flags extends EngineFlags {
  readonly data?: string[]
  readonly model: string
  readonly tasks?: string[]
  readonly lengths?: string[]
  readonly limit?: number
  readonly seed: number
  readonly mode: Mode
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
    'only these tasks; house and scbench: all of that family; several with commas',
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
  new Option('--mode <name>', "multi-turn: an example's questions in one conversation; multi-request: each alone")
    .choices(MODES)
    .default('multi-turn'),
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
    .description('accuracy on generated long-context tasks, or on your own sets, greedy')
    .action(run)
  addOptions(command, evalOptions(), engineOptions())
}

const table = new Table<EvalRow>([
  { title: 'task', width: 28, left: true, show: (r) => r.task },
  { title: 'length', width: 6, show: (r) => String(r.length) },
  { title: 'n', width: 4, show: (r) => String(r.n) },
  { title: 'accuracy', width: 8, show: (r) => `${(100 * r.accuracy).toFixed(0)} %` },
  { title: 'TTFT', width: 9, show: (r) => `${r.ttft_ms.toFixed(0)} ms` },
  { title: 'decode', width: 9, show: (r) => `${r.decode_tok_s.toFixed(0)} tok/s` },
  { title: 'KV cache', width: 9, show: (r) => showBytes(r.kv_bytes) },
])

async function run(flags: Flags): Promise<void> {
  const { evaluate } = await import('../eval/evaluate.ts')
  const { Results } = await import('../eval/results.ts')
  checkCount('--concurrency', flags.concurrency, 1)
  const cells = await cellsOf(flags)
  const longest = Math.max(...cells.map((cell) => cell.length))
  const context = flags.data ? {} : { context: longest + TURNS_ROOM }
  await using engine = await loadEngine(flags.model, { ...context, ...flags })
  const results = flags.out === undefined ? null : new Results(flags.out, engine.info.name)
  const progress = flags.json && !process.stderr.isTTY ? noProgress : countBar('examples')
  const show = (row: EvalRow) => {
    if (!flags.json) process.stdout.write(table.row(row))
  }
  if (!flags.json) process.stdout.write(table.head)
  const rows = await interruptible((signal) =>
    evaluate(engine, cells, {
      signal,
      concurrency: flags.concurrency,
      raw: flags.raw ?? false,
      finished: (cell) => {
        const row = results?.find(cell)
        if (row) show(row)
        return row
      },
      onProgress: progress.update,
      onRow: (row) => {
        results?.add(row)
        show(row)
      },
    }),
  ).finally(progress.end)
  if (flags.json) process.stdout.write(`${JSON.stringify({ rows })}\n`)
}

async function cellsOf({ data, model, tasks, lengths, limit, seed, mode, history }: Flags): Promise<Cell[]> {
  if (limit !== undefined) checkCount('--limit', limit, 1)
  for (const length of lengths ?? []) checkCount('--lengths', Number(length), 1)
  const { fileCells, taskCells } = await import('../eval/cells.ts')
  if (data) {
    const cells = fileCells({ files: data, ...given({ limit, lengths: lengths?.map(Number), tasks }) })
    if (cells.length === 0) throw invalid('the files hold no example of these tasks and lengths')
    return cells
  }
  checkCount('--seed', seed, 0)
  const { TASKS, tasksNamed } = await import('../eval/tasks/index.ts')
  const { Tokenizer } = await import('../model/tokenizer/tokenizer.ts')
  const tokenizer = await Tokenizer.load(await modelFile(model))
  return taskCells({
    tasks: tasks ? tasksNamed(tasks) : TASKS,
    lengths: lengths?.map(Number) ?? LENGTHS,
    n: limit ?? EXAMPLES,
    count: (text) => tokenizer.encode(text, { addSpecial: false }).length,
    ...{ mode, history, seed },
  })
}

function checkCount(flag: string, n: number, least: number): void {
  if (!Number.isSafeInteger(n) || n < least) throw invalid(`${flag} must be whole numbers from ${least} up`)
}

const invalid = (text: string) => new KvasirError('INVALID_ARGUMENT', text)
