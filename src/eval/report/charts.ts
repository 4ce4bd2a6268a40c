/** What the pictures show: panels, divergence and turns as charts. */
import type { Chart, Line } from './chart.ts'
import type { Divergence, Turns } from './curves.ts'
import type { ByLength } from './lengths.ts'
import type { Panel, Point } from './panels.ts'

export const percent = (share: number): string => `${Math.round(100 * share)} %`
const finer = (share: number) => (share < 0.1 ? `${(100 * share).toFixed(1)} %` : percent(share))

/** Less memory to the right, where the lines lie apart and are named. Half of the bytes is one step. */
function heldAxis(helds: readonly number[]): Chart['x'] {
  const ticks = [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
  const least = Math.min(0.5, ...helds)
  const to = least * 0.96
  return {
    ...{ from: 1, to, isLog: true, show: finer, title: 'keys and values held, of the full cache' },
    ticks: ticks.filter((tick) => tick >= to),
  }
}

const SHARE_AXIS = { from: 0, to: 1, ticks: [0, 0.25, 0.5, 0.75, 1], show: percent, title: 'accuracy' } as const

export function accuracyChart({ group, tasks, full, series }: Panel): Chart {
  const x = heldAxis(series.flatMap((s) => s.points.map((p) => p.held)))
  const tip = (policy: string, { held, accuracy, budget }: Point) =>
    `${policy}, budget ${budget}: ${percent(accuracy)} right with ${percent(held)} of the bytes`
  const lines = series.map(({ policy, points }): Line => {
    const measured = points.map((p) => ({ x: Math.min(1, p.held), y: p.accuracy, tip: tip(policy, p) }))
    // With room for everything each of them is the full cache: tests hold that, so it is not measured again.
    const start = full ? [unmarked(1, full.accuracy)] : []
    return { policy, points: [...start, ...measured] }
  })
  return { title: group, note: listed(tasks), x, y: SHARE_AXIS, lines: full ? [fullLine(full, x), ...lines] : lines }
}

/** A level across the panel, though the full cache holds all bytes: what the others are compared with. */
function fullLine({ accuracy }: Point, { from, to }: Chart['x']): Line {
  return {
    policy: 'full',
    label: `full, ${percent(accuracy)}`,
    points: [unmarked(from, accuracy), unmarked(to, accuracy)],
  }
}

const unmarked = (x: number, y: number) => ({ x, y, tip: '', isMarked: false })

/** Names as far as a panel is wide. */
function listed(names: readonly string[]): string {
  const text = names.join(', ')
  return text.length > 50 ? `${names.length} tasks` : text
}

export function klChart({ series, lengths }: Divergence): Chart {
  const all = series.flatMap((s) => s.points)
  const top = niceCeiling(Math.max(...all.map((p) => p.kl)))
  return {
    title: 'Divergence on prose',
    note: `KL from the full cache, nats a token; ${lengths.join(', ')} tokens`,
    x: heldAxis(all.map((p) => p.held)),
    y: { from: 0, to: top, ticks: [0, 1, 2, 3, 4].map((i) => (i * top) / 4), show: short, title: 'nats' },
    lines: series.map(({ policy, points }) => ({
      policy,
      points: [
        unmarked(1, 0),
        ...points.map((p) => ({ x: p.held, y: p.kl, tip: `${policy}, budget ${p.budget}: ${p.kl.toFixed(4)} nats` })),
      ],
    })),
  }
}

export function topChart({ series, lengths }: Divergence): Chart {
  const all = series.flatMap((s) => s.points)
  return {
    title: 'Same likeliest token on prose',
    note: `share of the places; ${lengths.join(', ')} tokens`,
    x: heldAxis(all.map((p) => p.held)),
    y: SHARE_AXIS,
    lines: series.map(({ policy, points }) => ({
      policy,
      points: [
        unmarked(1, 1),
        ...points.map((p) => ({ x: p.held, y: p.top1, tip: `${policy}, budget ${p.budget}: ${percent(p.top1)}` })),
      ],
    })),
  }
}

export function turnsChart({ series, budget, tasks }: Turns): Chart {
  const turns = series[0]!.turns.length
  return {
    title: `Turn by turn, budget ${budget}`,
    note: `the first question was known; ${listed(tasks)}`,
    x: {
      ...{ from: 1, to: turns, show: String, title: 'question' },
      ticks: Array.from({ length: turns }, (_, i) => i + 1),
    },
    y: SHARE_AXIS,
    lines: series.map(({ policy, turns: accuracies }) => ({
      policy,
      points: accuracies.map((y, i) => ({ x: i + 1, y, tip: `${policy}, question ${i + 1}: ${percent(y)}` })),
    })),
  }
}

export function lengthChart({ group, setting, tasks, budget, lengths, series }: ByLength): Chart {
  return {
    title: `${group}: ${setting.short}`,
    note: `budget ${budget}; ${listed(tasks)}`,
    x: {
      ...{ from: lengths[0]!, to: lengths.at(-1)!, isLog: true, show: String, title: 'tokens of the context' },
      ticks: lengths,
    },
    y: SHARE_AXIS,
    lines: series.map(({ policy, accuracies }) => ({
      policy,
      points: accuracies.map((y, i) => ({ x: lengths[i]!, y, tip: `${policy}, ${lengths[i]} tokens: ${percent(y)}` })),
    })),
  }
}

const short = (value: number) => String(Number(value.toPrecision(2)))

/** The least of 1, 2, 4, 8 times a power of ten that is no smaller. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)))
  return [1, 2, 4, 8, 10].map((step) => step * power).find((nice) => nice >= value)!
}
