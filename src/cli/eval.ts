/** `kvasir eval`: accuracy on evaluation sets. */
import { type Command, Option } from 'commander'
import { showBytes } from '../contract/errors.ts'
import type { EvalRow } from '../eval/evaluate.ts'
import { interruptible } from './interrupt.ts'
import { loadEngine } from './model.ts'
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

interface Flags extends EngineFlags {
  readonly data: string[]
  readonly model: string
  readonly limit?: number
  readonly lengths?: string[]
  readonly tasks?: string[]
  readonly json?: true
}

export const evalOptions = (): Option[] => [
  new Option('--data <files...>', 'JSON lines: {task, length, messages, answers}').makeOptionMandatory(),
  new Option('-m, --model <model>', MODEL_HELP).default('house'),
  new Option('--limit <n>', 'most examples of each task and length (default: all)').argParser(toNumber),
  new Option('--lengths <tokens>', 'only these lengths; several with commas').argParser(collectList),
  new Option('--tasks <names>', 'only these tasks; several with commas').argParser(collectList),
  jsonOption('print { "rows": [...] } instead of a table'),
]

export function addEval(program: Command): void {
  const command = program.command('eval').description('accuracy on evaluation sets, greedy').action(run)
  addOptions(command, evalOptions(), engineOptions())
}

const table = new Table<EvalRow>([
  { title: 'task', width: 16, left: true, show: (r) => r.task },
  { title: 'length', width: 6, show: (r) => String(r.length) },
  { title: 'n', width: 4, show: (r) => String(r.n) },
  { title: 'accuracy', width: 8, show: (r) => `${(100 * r.accuracy).toFixed(0)} %` },
  { title: 'KV cache', width: 9, show: (r) => showBytes(r.kv_bytes) },
])

async function run(flags: Flags): Promise<void> {
  const { evaluate } = await import('../eval/evaluate.ts')
  await using engine = await loadEngine(flags.model, flags)
  const progress = flags.json && !process.stderr.isTTY ? noProgress : countBar('examples')
  if (!flags.json) process.stdout.write(table.head)
  const rows = await interruptible((signal) =>
    evaluate(engine, {
      files: flags.data,
      signal,
      onProgress: progress.update,
      onRow: (row) => {
        if (!flags.json) process.stdout.write(table.row(row))
      },
      ...given({ limit: flags.limit, lengths: flags.lengths?.map(Number), tasks: flags.tasks }),
    }),
  ).finally(progress.end)
  if (flags.json) process.stdout.write(`${JSON.stringify({ rows })}\n`)
}
