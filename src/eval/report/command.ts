/** The commands that make rows like these, worked out from the rows themselves: nothing else has to be kept. */

import { PROSE } from '../cells.ts'
import type { EvalRow } from '../row.ts'
import { TASKS } from '../tasks/index.ts'
import { isFull, OWN } from '../treatments.ts'
import { groupBy, unique } from './lists.ts'

/**
 * One per number of examples, seed and whatever else a run has one of; `file` is where the rows go. Own sets: their files are not
 * known, so the command says FILES.
 */
export function commandsFor(rows: readonly EvalRow[], file: string): string[] {
  const asked = rows.filter((row) => row.mode !== 'forced')
  const common = (row: EvalRow) => [row.n, row.seed, row.history, sharesPrompts(row, rows)]
  const momentsOf = (mode: EvalRow['mode']) => momentsIn(asked.filter((row) => row.mode === mode))
  const runs = [...groupBy(asked, (row) => JSON.stringify([common(row), momentsOf(row.mode)])).values()]
  // Prose is the same in all modes, so it goes with the first run that has its examples.
  for (const prose of groupBy(
    rows.filter((row) => row.mode === 'forced'),
    (row) => JSON.stringify(common(row)),
  ).values()) {
    const run = runs.find((own) => JSON.stringify(common(own[0]!)) === JSON.stringify(common(prose[0]!)))
    if (run) run.push(...prose)
    else runs.push(prose)
  }
  return runs.map((run) => commandFor(run, file))
}

const momentsIn = (rows: readonly EvalRow[]) => unique(rows.flatMap((row) => row.compress_at ?? [])).sort()

function commandFor(rows: readonly EvalRow[], file: string): string {
  const { n, seed, history, model } = rows[0]!
  const names = (of: readonly (string | number)[]) => unique(of).map(quoted).join(',')
  const treated = rows.filter((row) => !isFull(row))
  const budgets = treated.map((r) => r.budget).filter((budget) => budget !== OWN)
  const asked = rows.filter((row) => row.mode !== 'forced')
  const shared = treated.some((row) => row.ttft_ms === null)
  const moments = momentsIn(treated)
  const order = [...TASKS.map((task) => task.name), PROSE]
  const tasks = rows.map((row) => row.task).sort((a, b) => order.indexOf(a) - order.indexOf(b))
  return [
    'npm run kvasir -- eval',
    /house/i.test(model) ? '' : `-m ${quoted(model)}`,
    seed === null ? '--data FILES' : `--tasks ${names(tasks)}`,
    `--lengths ${names(rows.map((r) => r.length).sort((a, b) => a - b))}`,
    `--limit ${n}`,
    seed ? `--seed ${seed}` : '',
    treated.length ? `--policies ${names(rows.map((r) => r.policy))}` : '',
    budgets.length ? `--budgets ${names(budgets)}` : '',
    asked.length && seed !== null ? `--mode ${names(asked.map((r) => r.mode))}` : '',
    moments.length && seed !== null ? `--compress-at ${names(moments)}` : '',
    history === 'own' ? '--history own' : '',
    shared ? '--shared-prompts' : '',
    `--out ${quoted(file)}`,
  ]
    .filter((part) => part !== '')
    .join(' ')
}

/** Of a full row, what the others of its run say. */
function sharesPrompts(row: EvalRow, rows: readonly EvalRow[]): boolean {
  return rows.some((r) => !isFull(r) && r.ttft_ms === null && r.n === row.n && r.seed === row.seed)
}

const quoted = (value: string | number) => (/^[\w./:,-]+$/.test(String(value)) ? String(value) : `'${value}'`)
