/** A uPlot chart that follows its box, its data and the theme. */
import 'uplot/dist/uPlot.min.css'
import { type ReadonlySignal, useSignal, useSignalEffect } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import { ink, paletteVersion } from '../theme.ts'

interface PlotProps {
  readonly data: ReadonlySignal<uPlot.AlignedData>
  /** Called anew when colours change. */
  readonly options: () => Omit<uPlot.Options, 'width' | 'height'>
  readonly height: number
}

export function Plot({ data, options, height }: PlotProps) {
  const box = useRef<HTMLDivElement>(null)
  const chart = useRef<uPlot | null>(null)
  const width = useSignal(0)
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => (width.value = Math.floor(entry!.contentRect.width)))
    observer.observe(box.current!)
    return () => observer.disconnect()
  }, [])
  useSignalEffect(() => {
    paletteVersion.value
    if (width.value === 0 || !box.current) return
    const made = new uPlot({ ...options(), width: width.value, height }, data.peek(), box.current)
    chart.current = made
    return () => {
      made.destroy()
      chart.current = null
    }
  })
  useSignalEffect(() => {
    // Read whether or not there is a chart: what is not read is not followed.
    const now = data.value
    chart.current?.setData(now)
  })
  return <div ref={box} class="plot" style={{ height: `${height}px` }} aria-hidden="true" />
}

/** Axes as quiet as the rest of the page. */
export function axis(more: uPlot.Axis = {}): uPlot.Axis {
  return {
    stroke: ink('muted'),
    font: '11px system-ui, sans-serif',
    grid: { stroke: ink('line'), width: 1 },
    ticks: { show: false },
    ...more,
  }
}

/** No legend, no cursor: figures stand in the caption. */
export const QUIET = { legend: { show: false }, cursor: { show: false } } as const
