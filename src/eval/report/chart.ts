/** One panel with a line per policy, each named at its end, as SVG without its outermost element. */
import { escaped, type Styles } from './palette.ts'

export interface Line {
  readonly policy: string
  /** What is written at its end. Default: the policy. */
  readonly label?: string
  readonly points: readonly {
    readonly x: number
    readonly y: number
    readonly tip: string
    readonly isMarked?: boolean
  }[]
}

export interface Axis {
  /** Values at the panel's left and right, or bottom and top. */
  readonly from: number
  readonly to: number
  /** Default: linear. */
  readonly isLog?: boolean
  readonly ticks: readonly number[]
  readonly show: (value: number) => string
  readonly title: string
}

export interface Chart {
  readonly title: string
  readonly note: string
  readonly x: Axis
  readonly y: Axis
  readonly lines: readonly Line[]
}

export const CHART = { width: 372, height: 292 } as const
const MARGIN = { left: 40, right: 104, top: 46, bottom: 38 } as const
/** Between the baselines of neighbouring names. */
const LABEL_GAP = 12

export function drawChart({ title, note, x, y, lines }: Chart, styles: Styles): string {
  const { width, height } = CHART
  const left = MARGIN.left
  const right = width - MARGIN.right
  const [top, bottom] = [MARGIN.top, height - MARGIN.bottom]
  const atX = scale(x, left, right)
  const atY = scale(y, bottom, top)
  const grid = y.ticks.map((tick) => {
    const py = px(atY(tick))
    return `<path class="grid" d="M${left} ${py}H${right}"/><text x="${left - 6}" y="${py + 4}" text-anchor="end">${y.show(tick)}</text>`
  })
  const ticks = x.ticks.map((tick) => {
    const at = px(atX(tick))
    return `<path class="grid" d="M${at} ${bottom}v4"/><text x="${at}" y="${bottom + 16}" text-anchor="middle">${x.show(tick)}</text>`
  })
  // Names follow the ends from top to bottom; of equals, the end that is further left gets the higher one: leaders cross less.
  const end = (line: Line) => line.points.at(-1)!
  const drawn = lines
    .filter((line) => line.points.length > 0)
    .sort((a, b) => atY(end(a).y) - atY(end(b).y) || atX(end(a).x) - atX(end(b).x))
  const ends = spread(
    drawn.map((line) => atY(end(line).y)),
    top + 4,
    bottom,
  )
  const series = drawn.map((line, i) => drawLine(line, { atX, atY, right, labelY: ends[i]! }, styles))
  // References lie below what they are compared with.
  const inOrder = [...drawn.keys()].sort((a, b) => rank(drawn[a]!) - rank(drawn[b]!)).map((i) => series[i]!)
  return `<text class="title" x="${left}" y="18">${escaped(title)}</text><text x="${left}" y="33">${escaped(note)}</text>
${grid.join('')}${ticks.join('')}<text x="${(left + right) / 2}" y="${height - 5}" text-anchor="middle">${escaped(x.title)}</text>
${inOrder.join('\n')}`

  function rank({ policy }: Line): number {
    return styles.get(policy)!.isReference ? 0 : 1
  }
}

interface Place {
  readonly atX: (x: number) => number
  readonly atY: (y: number) => number
  readonly right: number
  readonly labelY: number
}

function drawLine(
  { policy, points, label = policy }: Line,
  { atX, atY, right, labelY }: Place,
  styles: Styles,
): string {
  const { name, dash, isReference } = styles.get(policy)!
  const at = points.map(({ x, y }) => [px(atX(x)), px(atY(y))] as const)
  const [endX, endY] = at.at(-1)!
  const marks = points.map(({ tip, isMarked = true }, i) =>
    isMarked ? `<circle cx="${at[i]![0]}" cy="${at[i]![1]}" r="3.5"><title>${escaped(tip)}</title></circle>` : '',
  )
  return `<g class="series ${name}${isReference ? ' reference' : ''}" data-policy="${escaped(policy)}">\
<path d="M${at.map((p) => p.join(' ')).join('L')}"${dash ? ` stroke-dasharray="${dash}"` : ''}/>\
<path class="leader" d="M${endX + 5} ${endY}L${right + 14} ${px(labelY)}"/>\
${marks.join('')}<text x="${right + 17}" y="${px(labelY + 4)}">${escaped(label)}</text></g>`
}

function scale({ from, to, isLog = false }: Axis, start: number, end: number): (value: number) => number {
  const on = isLog ? Math.log2 : (value: number) => value
  return (value) => start + ((on(value) - on(from)) / (on(to) - on(from))) * (end - start)
}

/**
 * Heights near the wanted ones, none nearer to another than a line of text, within the panel. Neighbours that are too near form
 * a block around the mean of what they want; blocks that touch are joined.
 */
export function spread(wanted: readonly number[], top: number, bottom: number): number[] {
  const order = [...wanted.keys()].sort((a, b) => wanted[a]! - wanted[b]!)
  const blocks: { readonly members: number[]; start: number }[] = []
  for (const i of order) {
    blocks.push({ members: [i], start: wanted[i]! })
    for (;;) {
      const block = blocks.at(-1)!
      const height = (block.members.length - 1) * LABEL_GAP
      const centre = block.members.reduce((sum, m) => sum + wanted[m]!, 0) / block.members.length
      block.start = Math.max(top, Math.min(bottom - height, centre - height / 2))
      const before = blocks.at(-2)
      if (!before || before.start + before.members.length * LABEL_GAP <= block.start) break
      blocks.pop()
      before.members.push(...block.members)
    }
  }
  const heights = wanted.map(() => 0)
  for (const { members, start } of blocks)
    for (const [row, i] of members.entries()) heights[i] = start + row * LABEL_GAP
  return heights
}

/** Tenths of a pixel are enough. */
const px = (value: number) => Math.round(value * 10) / 10
