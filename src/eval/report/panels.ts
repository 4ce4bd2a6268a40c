/** Rows of results, sorted into what is drawn: a panel per group of tasks and per moment at which the cache is shortened. */
import type { CompressAt, Mode } from '../plan.ts'
import type { EvalRow } from '../row.ts'
import type { Capability } from '../tasks/example.ts'
import { TASKS } from '../tasks/index.ts'
import { isFull } from '../treatments.ts'
import { groupBy, mean, unique } from './lists.ts'

/** A row of which a score is known. */
export type AskedRow = EvalRow & { readonly accuracy: number; readonly mode: Mode }

export interface Setting {
  readonly mode: Mode
  readonly compressAt: CompressAt
  readonly title: string
  /** For narrow places. */
  readonly short: string
  readonly about: string
}

/** Query-aware first. */
export const SETTINGS: readonly Setting[] = [
  {
    mode: 'multi-request',
    compressAt: 'question',
    title: 'The question is known',
    short: 'known',
    about:
      'Each question is asked alone, and is in view when the cache is shortened: the best case for policies that look at it.',
  },
  {
    mode: 'multi-turn',
    compressAt: 'question',
    title: 'Only the first question is known',
    short: 'first known',
    about:
      'A conversation: the cache is shortened once, with the first question in view; the later ones meet what was kept for it.',
  },
  {
    mode: 'multi-request',
    compressAt: 'context',
    title: 'No question is known',
    short: 'unknown',
    about:
      'The context is shortened before anybody asks; each question is then asked alone. Nothing tells a policy what matters.',
  },
  {
    mode: 'multi-turn',
    compressAt: 'context',
    title: 'No question is known, in a conversation',
    short: 'unknown, in turn',
    about: 'The context is shortened before anybody asks; the questions then come in turn.',
  },
]

export interface Point {
  readonly budget: number | string
  /** Bytes held over those of the full cache, mean over the cells. */
  readonly held: number
  /** Mean over the cells. */
  readonly accuracy: number
  /** Of each cell, in the panel's order. */
  readonly rows: readonly AskedRow[]
}

export interface Series {
  readonly policy: string
  /** From the most bytes held to the least. */
  readonly points: readonly Point[]
}

export interface Panel {
  readonly id: string
  readonly group: string
  readonly setting: Setting
  readonly tasks: readonly string[]
  readonly lengths: readonly number[]
  /** Examples of each task and length. */
  readonly n: number
  /** Accuracy of the full cache; null: it was not run. */
  readonly full: Point | null
  readonly series: readonly Series[]
  /** Policies and budgets that were not run, or refused, in some of the cells: they are in no mean. */
  readonly incomplete: readonly { readonly policy: string; readonly budget: number | string }[]
}

const HOUSE_GROUPS: Readonly<Record<Capability, string>> = {
  'string retrieval': 'Retrieval',
  'semantic retrieval': 'RAG',
  'multi-tasking': 'Multi-turn',
  'global information': 'Counting',
}

/** In the order of the panels. */
const GROUPS = new Map(
  TASKS.map(({ name, family, capability }) => [
    name,
    family === 'house' ? HOUSE_GROUPS[capability] : `SCBench, ${capability}`,
  ]),
)
const OTHERS = 'Own sets'
const ORDER = unique([...Object.values(HOUSE_GROUPS), ...GROUPS.values(), OTHERS])

export const groupOf = (task: string): string => GROUPS.get(task) ?? OTHERS

/** Settings of which there are rows, and their panels, in the order of reading. */
export function panelsOf(rows: readonly EvalRow[]): Panel[] {
  const asked = largest(rows.filter(isAsked))
  return SETTINGS.flatMap((setting) =>
    ORDER.flatMap((group) => {
      const here = asked.filter((row) => groupOf(row.task) === group && row.mode === setting.mode)
      const treated = here.filter((row) => !isFull(row) && row.compress_at === setting.compressAt)
      return treated.length ? [panelOf(group, setting, here.filter(isFull), treated)] : []
    }),
  )
}

function panelOf(group: string, setting: Setting, full: readonly AskedRow[], treated: readonly AskedRow[]): Panel {
  const cells = commonCells(treated)
  const pointOf = (of: readonly AskedRow[]) => point(cells, of)
  const within = (of: readonly AskedRow[]) => of.filter((row) => cells.includes(cellOf(row)))
  const treatments = [...groupBy(treated, treatmentOf).values()].map((of) => ({ of, shown: within(of) }))
  const whole = treatments.map((t) => t.shown).filter((of) => of.length === cells.length)
  const series = [...groupBy(whole, (of) => of[0]!.policy)].map(([policy, all]): Series => {
    return { policy, points: all.map(pointOf).sort((a, b) => b.held - a.held) }
  })
  const incomplete = treatments.filter((t) => t.shown.length < cells.length).map((t) => t.of[0]!)
  const shown = within(treated)
  return {
    id: slug(`${group} ${setting.mode} ${setting.compressAt}`),
    ...{ group, setting, series },
    tasks: unique(shown.map((row) => row.task)),
    lengths: unique(shown.map((row) => row.length)).sort((a, b) => a - b),
    n: Math.max(...shown.map((row) => row.n)),
    full: within(full).length === cells.length ? pointOf(full) : null,
    incomplete: incomplete.map(({ policy, budget }) => ({ policy, budget })),
  }
}

/** What stands in a panel, and how to read its margins. */
export function aboutPanel({ tasks, lengths, n, incomplete }: Panel): string {
  const left = incomplete.map(({ policy, budget }) => `${policy} at ${budget}`).join(', ')
  return (
    `${tasks.join(', ')}; ${lengths.join(', ')} tokens; ${n} examples each. Margins in points [95 % interval], at the same budget; ` +
    'bold: the interval does not hold 0 and, but for the full cache, bytes are equal within a tenth.' +
    (left ? ` Not in all tasks and lengths, so not shown: ${left}.` : '')
  )
}

/** Of a policy that takes no budget: its options stand in its place. */
export const hasOptions = ({ budget }: Point): boolean => typeof budget === 'string' && !/^\d/.test(budget)

/** Policies that take no budget stand beside those that do when their bytes are no further from it. */
const MOST_BYTES_OFF = 1.3
const isNear = (held: number, budget: number) => Math.max(held / budget, budget / held) <= MOST_BYTES_OFF

/** The point whose bytes come nearest. */
export function nearest(points: readonly Point[] | undefined, held: number): Point | undefined {
  return points?.reduce((best, p) => (Math.abs(p.held - held) < Math.abs(best.held - held) ? p : best))
}

/** A policy at a budget; of one that takes none, the point with about as many bytes. Null: there is none. */
export function pointAt(panel: Panel, policy: string, budget: Point['budget']): Point | null {
  if (policy === 'full') return panel.full
  const points = panel.series.find((s) => s.policy === policy)?.points
  if (points?.some(hasOptions) && typeof budget === 'number') {
    const point = nearest(points, budget)
    return point && isNear(point.held, budget) ? point : null
  }
  return points?.find((p) => p.budget === budget) ?? null
}

const treatmentOf = (row: AskedRow) => JSON.stringify([row.policy, row.budget])

/** Tasks and lengths of at least half of the treatments: a few rows more of one of them must not cost all others their place. */
function commonCells(treated: readonly AskedRow[]): string[] {
  const treatments = groupBy(treated, treatmentOf).size
  const cells = [...groupBy(treated, cellOf)].filter(([, of]) => 2 * of.length >= treatments)
  return cells.map(([cell]) => cell).sort()
}

/** `of` has a row of every cell. */
function point(cells: readonly string[], of: readonly AskedRow[]): Point {
  const rows = cells.map((cell) => of.find((row) => cellOf(row) === cell)!)
  return {
    budget: rows[0]!.budget,
    held: mean(rows.map(heldOf)),
    accuracy: mean(rows.map((row) => row.accuracy)),
    rows,
  }
}

/** Of cells that were run with several numbers of examples, those with most. */
function largest(rows: readonly AskedRow[]): AskedRow[] {
  const key = (r: AskedRow) => JSON.stringify([r.policy, r.budget, r.compress_at, cellOf(r), r.mode, r.seed, r.history])
  return [...groupBy(rows, key).values()].map((same) => same.reduce((a, b) => (b.n > a.n ? b : a)))
}

const isAsked = (row: EvalRow): row is AskedRow => row.accuracy !== null && row.mode !== 'forced'
const cellOf = (row: EvalRow) => `${row.task} ${String(row.length).padStart(7)}`
export const heldOf = (row: EvalRow): number => row.kv_bytes / row.kv_bytes_full
const slug = (text: string) => text.toLowerCase().replace(/[^a-z0-9]+/g, '-')
