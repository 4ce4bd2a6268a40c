/** The report as one page: no script, nothing from elsewhere, light or dark as the reader's system is. */

import { CHART, type Chart, drawChart } from './chart.ts'
import { accuracyChart, klChart, lengthChart, percent, topChart, turnsChart } from './charts.ts'
import { byLength } from './lengths.ts'
import { groupBy, unique } from './lists.ts'
import { PAGE_CSS } from './page-css.ts'
import { escaped, paletteCss, type Styles } from './palette.ts'
import { aboutPanel, type Panel } from './panels.ts'
import type { Report } from './report.ts'
import { costTable, type DataTable, divergenceTable, lengthTable, marginTable, overviewTable } from './tables.ts'

export function drawPage(report: Report): string {
  const { panels, policies, styles, turns, divergence, costs, commands } = report
  const budget = middleBudget(panels)
  const lengths = byLength(panels, budget)
  const sections = [...groupBy(panels, (p) => p.setting)].map(
    ([{ title, about }, own]) => `<section>
<h2>${escaped(title)}</h2>
<p>${escaped(about)}</p>
<div class="charts">${own.map((panel) => figure(accuracyChart(panel), styles)).join('\n')}</div>
${own.map((panel) => panelDetails(panel)).join('\n')}
</section>`,
  )
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Kvasir: accuracy against bytes held</title>
<style>
${paletteCss(styles)}${PAGE_CSS}${highlights(styles)}</style>
<main>
<h1>What is still answered when most of the cache is gone</h1>
<p class="lead">${escaped(facts(report))}</p>
<nav aria-label="policies">${policies.map((policy) => chip(policy, styles)).join('')}</nav>
<p class="hint">Point at a policy to see it alone.</p>
${panels.length ? `<section><h2>At a budget of ${budget}</h2>${tableHtml(overviewTable(panels, budget, policies))}</section>` : ''}
${lengths.length ? `<section><h2>By length, at a budget of ${budget}</h2><p>${ABOUT_LENGTHS}</p><div class="charts">${lengths.map((own) => figure(lengthChart(own), styles)).join('\n')}</div>${lengths.map((own) => details(`${own.group}, ${own.setting.short}: as numbers`, lengthTable(own))).join('\n')}</section>` : ''}
${sections.join('\n')}
${turns ? `<section><h2>Turn by turn</h2><p>The cache was shortened with the first question in view. A policy that looks at the question answers the first one best, and the later ones worse.</p><div class="charts">${figure(turnsChart(turns), styles)}</div></section>` : ''}
${divergence ? `<section><h2>On prose</h2><p>${divergenceText(report)}</p><div class="charts">${figure(klChart(divergence), styles)}${figure(topChart(divergence), styles)}</div>${details('Divergence as numbers', divergenceTable(divergence))}</section>` : ''}
<section><h2>What it costs</h2><p>Several examples ran at once, so these are times of shared work: compare them with each other only. An empty cell: the prompt had been computed for another policy before.</p>${details('Times', costTable(costs))}</section>
<section><h2>How it was made</h2><pre>${commands.map(escaped).join('\n')}</pre>
<p>Kvasir ${escaped(report.version)}. Bytes are measured in the store: whole blocks of 32 rows for each layer and KV head, those of the question and the answer included. Intervals: 95 %, bootstrap over examples, paired, within each task and length, widened for their number.</p></section>
</main>
</html>
`
}

export const ABOUT_LENGTHS =
  'The same share of the bytes, of longer and longer contexts. What the model itself loses with length is in the line of the full cache.'

/** What was measured, in a line. */
export function facts({ model, panels, divergence, policies }: Report): string {
  const tasks = unique(panels.flatMap((p) => p.tasks))
  const lengths = unique([...panels.flatMap((p) => p.lengths), ...(divergence?.lengths ?? [])]).sort((a, b) => a - b)
  const asked = tasks.length ? `${tasks.length} tasks, ${Math.max(...panels.map((p) => p.n))} examples each, and ` : ''
  const compared = policies.filter((policy) => policy !== 'full').length
  return `${compared} cache policies against the full cache, by the bytes of keys and values that they really hold. Model: ${model}; ${asked}contexts of ${lengths.join(', ')} tokens.`
}

/** The one whose table comes first. */
export function middleBudget(panels: readonly Panel[]): number | string {
  const budgets = unique(panels.flatMap((p) => p.series.flatMap((s) => s.points.map((point) => point.budget))))
  return budgets.includes(0.25) ? 0.25 : (budgets[Math.floor(budgets.length / 2)] ?? 1)
}

function divergenceText({ divergence }: Report): string {
  return `${divergence!.n} made-up texts: after the prompt, 64 tokens are given one by one, and the predictions for each place are compared with the full cache's. KL is a lower bound, from the 20 likeliest tokens of either side.`
}

function figure(chart: Chart, styles: Styles): string {
  const { width, height } = CHART
  return `<figure><svg class="plot" viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(`${chart.title}: ${chart.note}`)}">${drawChart(chart, styles)}</svg></figure>`
}

function panelDetails(panel: Panel): string {
  return details(`${panel.group}: margins`, marginTable(panel), aboutPanel(panel))
}

function details(summary: string, table: DataTable, note = ''): string {
  return `<details><summary>${escaped(summary)}</summary>${note ? `<p>${escaped(note)}</p>` : ''}${tableHtml(table)}</details>`
}

function tableHtml({ head, rows }: DataTable): string {
  const cell = ({ text, isStrong, share }: DataTable['rows'][number][number]) => {
    const fill = share === undefined ? '' : ` style="--share:${percent(share).replace(' ', '')}"`
    return `<td${fill}>${isStrong ? `<b>${escaped(text)}</b>` : escaped(text)}</td>`
  }
  const body = rows.map(([name, ...cells]) => `<tr><th>${escaped(name!.text)}</th>${cells.map(cell).join('')}</tr>`)
  return `<div class="scroll"><table><thead><tr>${head.map((h) => `<th>${escaped(h)}</th>`).join('')}</tr></thead><tbody>${body.join('')}</tbody></table></div>`
}

function chip(policy: string, styles: Styles): string {
  const { name, dash } = styles.get(policy)!
  const line = `<svg width="26" height="8" aria-hidden="true"><path d="M1 4H25"${dash ? ` stroke-dasharray="${dash}"` : ''}/></svg>`
  return `<span class="chip ${name}" tabindex="0">${line}${escaped(policy)}</span>`
}

/** Whichever policy is pointed at, all others fade. */
function highlights(styles: Styles): string {
  return [...styles.values()]
    .map(({ name }) => `main:has(.${name}:is(:hover,:focus)) .series:not(.${name}){opacity:.12}`)
    .join('\n')
}
