/** Rows of `kvasir eval` to files: a page, a page for places that show Markdown, and pictures. Pure: the same rows, the same files. */
import { KvasirError } from '../../contract/errors.ts'
import { POLICIES } from '../../policies/index.ts'
import { splitSpec } from '../../policies/options.ts'
import type { EvalRow } from '../row.ts'
import { OWN } from '../treatments.ts'
import { accuracyChart, klChart, lengthChart, topChart, turnsChart } from './charts.ts'
import { commandsFor } from './command.ts'
import { type Cost, costsOf, type Divergence, divergenceOf, type Turns, turnsOf } from './curves.ts'
import { byLength } from './lengths.ts'
import { groupBy, unique } from './lists.ts'
import { drawMarkdown } from './markdown.ts'
import { drawPage, middleBudget } from './page.ts'
import { type Styles, stylesOf } from './palette.ts'
import { type Panel, panelsOf } from './panels.ts'
import { drawPicture } from './picture.ts'

export interface Report {
  readonly model: string
  readonly version: string
  /** In the order of the registry, so that a policy looks the same in every report with the same ones. */
  readonly policies: readonly string[]
  readonly styles: Styles
  readonly panels: readonly Panel[]
  readonly turns: Turns | null
  readonly divergence: Divergence | null
  readonly costs: readonly Cost[]
  /** What makes the rows, and then the report. */
  readonly commands: readonly string[]
}

export interface ReportOptions {
  /** Of Kvasir. */
  readonly version: string
  /** The files that hold the rows, and the folder of the report: for the commands. */
  readonly files: readonly string[]
  readonly folder: string
}

/** @throws KvasirError INVALID_ARGUMENT for rows of several models, or of the full cache alone */
export function readReport(given: readonly EvalRow[], { version, files, folder }: ReportOptions): Report {
  const rows = [...given].sort(inOrder)
  const models = unique(rows.map((row) => row.model))
  if (models.length > 1)
    throw invalid(`these are rows of several models: ${models.join(', ')}. Report each of them by itself`)
  const drawn = rows.map(byOptions)
  const panels = panelsOf(drawn)
  const divergence = divergenceOf(drawn)
  if (panels.length === 0 && !divergence)
    throw invalid('there is no row of a policy other than full: run kvasir eval with --policies, then report')
  const policies = unique(drawn.map((row) => row.policy))
  return {
    ...{ model: models[0]!, version, policies, panels, divergence },
    styles: stylesOf(policies),
    turns: turnsOf(drawn),
    costs: costsOf(drawn),
    // All rows in one file are the same report.
    commands: [...commandsFor(rows, files[0]!), `npm run kvasir -- report ${files[0]!} --out ${folder}`],
  }
}

/** File names to texts. */
export function drawReport(report: Report): Record<string, string> {
  const pictures = picturesOf(report)
  return {
    'index.html': drawPage(report),
    'README.md': drawMarkdown(report, Object.keys(pictures)),
    ...pictures,
  }
}

function picturesOf({ panels, divergence, turns, styles }: Report): Record<string, string> {
  const grid = [...groupBy(panels, (p) => p.setting.title)].map(([heading, row]) => ({
    heading,
    charts: row.map(accuracyChart),
  }))
  const beside = [
    ...(turns ? [turnsChart(turns)] : []),
    ...(divergence ? [klChart(divergence), topChart(divergence)] : []),
  ]
  const lengths = [...groupBy(byLength(panels, middleBudget(panels)), (own) => own.setting.title)]
  const byLengths = lengths.map(([heading, row]) => ({ heading, charts: row.map(lengthChart) }))
  return {
    ...(byLengths.length ? { 'lengths.svg': drawPicture(byLengths, styles) } : {}),
    ...(grid.length ? { 'accuracy.svg': drawPicture(grid, styles) } : {}),
    ...(beside.length ? { 'beside.svg': drawPicture([{ heading: '', charts: beside }], styles) } : {}),
  }
}

/** Policies that take no budget are one curve with a point for each of their options, which stand where others have a budget. */
function byOptions(row: EvalRow): EvalRow {
  if (row.budget !== OWN) return row
  const { name } = splitSpec(row.policy)
  return { ...row, policy: name, budget: row.policy.slice(name.length + 1) || 'as it is' }
}

const KNOWN = Object.keys(POLICIES)

/** The registry's, then whatever tells rows apart: they come in the order in which a run happened to end them. */
function inOrder(a: EvalRow, b: EvalRow): number {
  const place = (row: EvalRow) => {
    const at = KNOWN.indexOf(splitSpec(row.policy).name)
    return at < 0 ? KNOWN.length : at
  }
  const rest = (row: EvalRow) => JSON.stringify([row.policy, row.mode, row.compress_at, row.task, row.n, row.seed])
  return (
    place(a) - place(b) ||
    rest(a).localeCompare(rest(b)) ||
    a.length - b.length ||
    // From much to little.
    String(b.budget).localeCompare(String(a.budget))
  )
}

const invalid = (text: string) => new KvasirError('INVALID_ARGUMENT', text)
