/** A picture of several panels that stands alone, for pages that only show images: a row per setting, a column per group. */
import { CHART, type Chart, drawChart } from './chart.ts'
import { escaped, paletteCss, type Styles } from './palette.ts'

export interface PictureRow {
  /** Empty: none is drawn. */
  readonly heading: string
  readonly charts: readonly Chart[]
}

const GAP = 12
const HEADING = 34

/** Light or dark as the reader's system is. */
export function drawPicture(rows: readonly PictureRow[], styles: Styles): string {
  const columns = Math.max(...rows.map((row) => row.charts.length))
  const width = GAP + columns * (CHART.width + GAP)
  let y = GAP
  const parts = rows.map(({ heading, charts }) => {
    const title = heading ? `<text class="heading" x="${GAP + 4}" y="${y + 18}">${escaped(heading)}</text>` : ''
    if (heading) y += HEADING
    const panels = charts.map((chart, column) => {
      const { width: w, height: h } = CHART
      const card = `<rect class="card" width="${w}" height="${h}" rx="8"/>`
      return `<g transform="translate(${GAP + column * (w + GAP)} ${y})">${card}${drawChart(chart, styles)}</g>`
    })
    y += CHART.height + GAP
    return title + panels.join('\n')
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="${width}" height="${y}" viewBox="0 0 ${width} ${y}">
<style>${paletteCss(styles)}</style>
<rect width="100%" height="100%" fill="var(--paper)"/>
${parts.join('\n')}
</svg>
`
}
