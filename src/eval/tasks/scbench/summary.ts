/** En.Sum: papers one after the other; summarise one. Scored by ROUGE-Lsum against its facts in canonical order. */
import { defineScbenchTask, TURNS } from './frame.ts'
import { makePapers, papersContext, summaryTurn } from './papers.ts'

export const summary = defineScbenchTask({
  name: 'scbench_summary',
  capability: 'global information',
  summary: 'summaries of papers',
  write(setting) {
    const { r, roomFor } = setting
    const papers = makePapers(setting)
    const context = papersContext(setting, 'Read the papers below.\n\n', papers)
    return { context, turns: r.sample(papers, TURNS).map((paper) => summaryTurn(paper, roomFor)) }
  },
})
