/** `kvasir report`: pictures and tables from the rows of `kvasir eval`. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Command, Option } from 'commander'
import { KvasirError } from '../contract/errors.ts'
import { packageVersion } from '../version.ts'
import { addOptions, jsonOption } from './options.ts'

interface Flags {
  readonly out: string
  readonly json?: true
}

const reportOptions = (): Option[] => [
  new Option('-o, --out <folder>', 'where index.html, README.md and the pictures go').default('report'),
  jsonOption('print { "files": [...], "panels": [...] } instead of the names of the files'),
]

export function addReport(program: Command): void {
  const command = program
    .command('report')
    .description('a page and pictures of accuracy against bytes held, from what kvasir eval --out wrote')
    .argument('<files...>', 'rows of kvasir eval --out')
    .action(run)
  addOptions(command, reportOptions())
}

async function run(files: readonly string[], { out, json }: Flags): Promise<void> {
  const { readRows } = await import('../eval/results.ts')
  const { drawReport, readReport } = await import('../eval/report/report.ts')
  const report = readReport(readRows(files), { version: packageVersion(), files, folder: out })
  const texts = drawReport(report)
  const paths = Object.keys(texts).map((name) => join(out, name))
  try {
    mkdirSync(out, { recursive: true })
    for (const [name, text] of Object.entries(texts)) writeFileSync(join(out, name), text)
  } catch (cause) {
    throw new KvasirError('INVALID_ARGUMENT', `--out ${out}: ${(cause as Error).message}`, { folder: out }, cause)
  }
  const { panels, divergence, turns, costs } = report
  process.stdout.write(
    json ? `${JSON.stringify({ files: paths, panels, divergence, turns, costs })}\n` : `${paths.join('\n')}\n`,
  )
}
