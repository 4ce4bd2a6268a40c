/** The report for places that show Markdown and images, but no pages. */
import { percent } from './charts.ts'
import { byLength } from './lengths.ts'
import { groupBy } from './lists.ts'
import { ABOUT_LENGTHS, facts, middleBudget } from './page.ts'
import { aboutPanel } from './panels.ts'
import type { Report } from './report.ts'
import { type DataTable, divergenceTable, lengthTable, marginTable, overviewTable } from './tables.ts'

export function drawMarkdown(report: Report, pictures: readonly string[]): string {
  const { panels, policies, divergence, commands } = report
  const budget = middleBudget(panels)
  const lengths = byLength(panels, budget)
  const settings = [...groupBy(panels, (p) => p.setting)]
  return `# Accuracy against bytes held

<!-- made by kvasir report: do not edit -->

${facts(report)} Bytes count questions and answers, too: they come on top of a budget where a policy does not go on in the answer. The same with all its pictures: [index.html](index.html).

${pictures.map((file) => `![${file.replace('.svg', '')}](${file})`).join('\n\n')}

${panels.length ? `## At a budget of ${budget}\n\n${table(overviewTable(panels, budget, policies))}\n` : ''}
${lengths.length ? `## By length, at a budget of ${budget}\n\n${ABOUT_LENGTHS}\n\n${lengths.map((own) => `### ${own.group}: ${own.setting.short}\n\n${table(lengthTable(own))}\n`).join('\n')}` : ''}
${settings.map(([setting, own]) => `## ${setting.title}\n\n${setting.about}\n\n${own.map(panelText).join('\n')}`).join('\n')}
${divergence ? `## Divergence on prose\n\n${table(divergenceTable(divergence))}\n` : ''}
## How it was made

\`\`\`sh
${commands.join('\n')}
\`\`\`
`
}

function panelText(panel: Report['panels'][number]): string {
  const { group, full } = panel
  const known = full ? ` The full cache: ${percent(full.accuracy)}.` : ''
  return `### ${group}

${aboutPanel(panel)}${known}

${table(marginTable(panel))}
`
}

function table({ head, rows }: DataTable): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [
    line(head),
    line(head.map((_, i) => (i === 0 ? '---' : '---:'))),
    ...rows.map((row) => line(row.map(({ text, isStrong }) => (isStrong ? `**${text}**` : text)))),
  ].join('\n')
}
