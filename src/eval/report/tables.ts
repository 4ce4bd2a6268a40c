/** Numbers behind the pictures, as cells of text. */
import { percent } from './charts.ts'
import type { Cost, Divergence } from './curves.ts'
import type { ByLength } from './lengths.ts'
import { isClear, type Margin, marginOf } from './margins.ts'
import { hasOptions, nearest, type Panel, type Point, pointAt } from './panels.ts'

export interface TableCell {
  readonly text: string
  /** Worth a second look: an interval that does not hold 0. */
  readonly isStrong?: boolean
  /** 0 to 1: how full the cell is drawn. */
  readonly share?: number
}

export interface DataTable {
  readonly head: readonly string[]
  /** The first cell names the row. */
  readonly rows: readonly (readonly TableCell[])[]
}

/** Whom margins are taken over. */
const RIVALS = ['random', 'streaming-llm'] as const

/** At the same budget one policy can hold more than another: answers come on top where a policy does not go on in them. */
const MOST_BYTES_APART = 1.1

/**
 * Every policy and budget, with margins over what costs nothing to decide, at the same budget, or, of policies that take none, at the
 * nearest number of bytes. Where one of the two holds over a tenth more bytes, the margin is marked and never bold: it is not one
 * at equal bytes.
 */
export function marginTable({ series, full }: Panel): DataTable {
  const rivalAt = (name: string, point: Point) => {
    const points = series.find((s) => s.policy === name)?.points
    return hasOptions(point) ? nearest(points, point.held) : points?.find((p) => p.budget === point.budget)
  }
  const rivals = RIVALS.filter((name) => series.some((s) => s.policy === name))
  const points = series.flatMap(({ policy, points }) => points.map((point) => ({ policy, point })))
  const budgets = [...new Set(points.map(({ point }) => point.budget))]
  const ordered = budgets.flatMap((budget) =>
    points.filter((p) => p.point.budget === budget).sort((a, b) => b.point.accuracy - a.point.accuracy),
  )
  return {
    head: [
      'policy',
      'budget',
      'held',
      'accuracy',
      ...rivals.map((name) => `over ${name}`),
      ...(full ? ['over full'] : []),
    ],
    rows: ordered.map(({ policy, point }) => [
      { text: policy },
      { text: String(point.budget) },
      { text: percent(point.held) },
      { text: percent(point.accuracy), share: point.accuracy },
      ...rivals.map((name) => {
        const rival = policy === name ? null : rivalAt(name, point)
        return marginCell(margin(point, rival), rival ? point.held / rival.held : 1)
      }),
      ...(full ? [marginCell(margin(point, full), 1)] : []),
    ]),
  }
}

const margin = (ours: Point, theirs: Point | null | undefined) => (theirs ? marginOf(ours.rows, theirs.rows) : null)

/** In points: hundredths of the scale. @param bytes ours over theirs */
function marginCell(m: Margin | null, bytes: number): TableCell {
  if (!m) return { text: '' }
  const apart = Math.max(bytes, 1 / bytes) > MOST_BYTES_APART
  const mark = apart ? ` (${bytes.toFixed(1)}x bytes)` : ''
  return { text: `${signed(m.mean)} [${signed(m.low)}, ${signed(m.high)}]${mark}`, isStrong: !apart && isClear(m) }
}

const signed = (x: number) => {
  const points = Math.round(100 * x)
  return points > 0 ? `+${points}` : points < 0 ? `−${-points}` : '0'
}

/** Accuracy of each policy in each panel at one budget, or with about as many bytes: what to look at first. */
export function overviewTable(
  panels: readonly Panel[],
  budget: Point['budget'],
  policies: readonly string[],
): DataTable {
  const cell = (point: Point | null | undefined): TableCell =>
    point ? { text: percent(point.accuracy), share: point.accuracy } : { text: '' }
  return {
    head: ['policy', ...panels.map((p) => `${p.group}: ${p.setting.short}`)],
    rows: policies.map((policy) => [{ text: policy }, ...panels.map((panel) => cell(pointAt(panel, policy, budget)))]),
  }
}

/** Of one panel: a row per policy, a column per length. */
export function lengthTable({ lengths, series }: ByLength): DataTable {
  return {
    head: ['policy', ...lengths.map(String)],
    rows: series.map(({ policy, accuracies }) => [
      { text: policy },
      ...accuracies.map((accuracy) => ({ text: percent(accuracy), share: accuracy })),
    ]),
  }
}

export function divergenceTable({ series }: Divergence): DataTable {
  return {
    head: ['policy', 'budget', 'held', 'KL, nats', 'same likeliest'],
    rows: series.flatMap(({ policy, points }) =>
      points.map((p) => [
        { text: policy },
        { text: String(p.budget) },
        { text: percent(p.held) },
        { text: p.kl.toFixed(4) },
        { text: percent(p.top1), share: p.top1 },
      ]),
    ),
  }
}

export function costTable(costs: readonly Cost[]): DataTable {
  const ms = (x: number | null) => (x === null ? '' : x.toFixed(1))
  return {
    head: ['policy', 'budget', 'length', 'TTFT, ms', 'of it policy, ms', 'decode, tokens/s'],
    rows: costs.map((c) => [
      { text: c.policy },
      { text: String(c.budget) },
      { text: String(c.length) },
      { text: ms(c.ttftMs) },
      { text: ms(c.policyMs) },
      { text: c.decodeTokS.toFixed(0) },
    ]),
  }
}
