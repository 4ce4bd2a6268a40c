/** What steps are made of and how long they take; time to first token, and time between tokens. */
import { useComputed } from '@preact/signals'
import uPlot from 'uplot'
import * as format from '../format.ts'
import { ink } from '../theme.ts'
import { history, status } from './feed.ts'
import { MOST_STEPS, type Point } from './history.ts'
import { axis, Plot, QUIET } from './plot.tsx'

const [ROWS_HEIGHT, MS_HEIGHT, TIMES_HEIGHT] = [96, 64, 120]
const Y_WIDTH = 50
/** Seconds that the plots of times look back: at least, at most. */
const [SHORTEST, LONGEST] = [10, 60]

export function Steps() {
  const steps = useComputed(() => history.value.steps)
  const at = useComputed(() => steps.value.map((_, i) => i - steps.value.length + 1))
  // The bars of all rows stand behind those of the decode rows: what shows of them is the prefill.
  const rows = useComputed<uPlot.AlignedData>(() => [
    at.value,
    steps.value.map((s) => s.prefillRows + s.decodeRows),
    steps.value.map((s) => s.decodeRows),
  ])
  const times = useComputed<uPlot.AlignedData>(() => [at.value, steps.value.map((s) => s.ms)])
  const last = steps.value.at(-1)
  return (
    <figure class="panel">
      <figcaption>
        <h2>
          Steps <span class="note">{`the last ${MOST_STEPS}`}</span>
        </h2>
        <ul class="legend">
          <li>
            <i class="key prefill" /> prefill rows
          </li>
          <li>
            <i class="key decode" /> decode rows
          </li>
          <li>
            <i class="key line" /> time
          </li>
        </ul>
        <p class="facts">
          {last
            ? `now: ${last.prefillRows} prefill and ${last.decodeRows} decode rows in ${format.ms(last.ms)}`
            : 'none yet'}
        </p>
      </figcaption>
      <Plot data={rows} options={rowOptions} height={ROWS_HEIGHT} />
      <Plot data={times} options={stepTimeOptions} height={MS_HEIGHT} />
    </figure>
  )
}

const STEP_AXIS: uPlot.Scale = { time: false, range: [-MOST_STEPS, 1] }
const fromZero =
  (least: number): uPlot.Range.Function =>
  (_, __, max) => [0, Math.max(least, (max || 0) * 1.1)]
const inMs = (_: uPlot, values: number[]) => values.map((n) => `${n} ms`)

/** A low chart has room for two labels. */
const topAndBottom = (_: uPlot, __: number, min: number, max: number) => [min, max / 1.1]

/** On a scale that shows 1 beside 512. */
function rowOptions(): Omit<uPlot.Options, 'width' | 'height'> {
  const bars = uPlot.paths.bars!({ size: [0.7, 12], align: 0 })
  const bar = (name: string): uPlot.Series => ({
    ...{ scale: 'rows', paths: bars, fill: ink(name), width: 0, points: { show: false } },
  })
  return {
    ...QUIET,
    scales: { x: STEP_AXIS, rows: { distr: 4, asinh: 1, range: fromZero(10) } },
    axes: [
      axis({ show: false }),
      axis({
        scale: 'rows',
        size: Y_WIDTH,
        splits: () => [0, 1, 10, 100],
        values: (_, v) => v.map((n) => `${n ?? ''}`),
      }),
    ],
    series: [{}, bar('prefill'), bar('decode')],
  }
}

function stepTimeOptions(): Omit<uPlot.Options, 'width' | 'height'> {
  return {
    ...QUIET,
    scales: { x: STEP_AXIS, ms: { range: fromZero(1) } },
    axes: [
      axis({ show: false }),
      axis({ scale: 'ms', size: Y_WIDTH, splits: topAndBottom, values: (_, v) => v.map(format.ms) }),
    ],
    series: [{}, { scale: 'ms', stroke: ink('text'), width: 1.25, points: { show: false } }],
  }
}

export function Latencies() {
  return (
    <div class="pair">
      <Times title="Time to first token" of={(h) => h.ttft} size={6} />
      <Times title="Between tokens" of={(h) => h.gaps} size={3} />
    </div>
  )
}

interface TimesProps {
  readonly title: string
  readonly of: (history: { readonly ttft: readonly Point[]; readonly gaps: readonly Point[] }) => readonly Point[]
  /** Of a point, CSS pixels. */
  readonly size: number
}

function Times({ title, of, size }: TimesProps) {
  const data = useComputed<uPlot.AlignedData>(() => {
    const nowMs = Math.max(status.value?.nowMs ?? 0, history.value.steps.at(-1)?.atMs ?? 0)
    const points = of(history.value).filter((p) => p.atMs > nowMs - 1000 * LONGEST)
    return [points.map((p) => (p.atMs - nowMs) / 1000), points.map((p) => p.ms)]
  })
  const sorted = of(history.value).map((p) => p.ms)
  sorted.sort((a, b) => a - b)
  const at = (share: number) => format.ms(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!)
  const options = () => ({
    ...QUIET,
    scales: {
      x: { time: false, range: (u: uPlot): [number, number] => [-lookBack(u), 0] },
      y: { range: fromZero(1) },
    },
    axes: [
      axis({
        size: 24,
        splits: (u) => [-lookBack(u), -lookBack(u) / 2, 0],
        values: (_, v) => v.map((n) => (n === 0 ? 'now' : `${n} s`)),
      }),
      axis({ size: Y_WIDTH, values: inMs }),
    ],
    series: [
      {},
      { paths: () => null, points: { show: true, size, width: 0, fill: ink('accent'), stroke: ink('accent') } },
    ],
  })
  return (
    <figure class="panel">
      <figcaption>
        <h2>{title}</h2>
        <p class="facts">
          {sorted.length ? `median ${at(0.5)} · 95 % within ${at(0.95)} · ${sorted.length} seen` : 'none yet'}
        </p>
      </figcaption>
      <Plot data={data} options={options} height={TIMES_HEIGHT} />
    </figure>
  )
}

/** Seconds: as far as the oldest point, in tens. */
function lookBack({ data: [times] }: uPlot): number {
  return Math.min(LONGEST, Math.max(SHORTEST, 10 * Math.ceil(-(times[0] ?? 0) / 10)))
}
