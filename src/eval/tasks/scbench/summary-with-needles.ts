/** Mix.Sum+NIAH: the papers of summary with pass keys in their prose; turns ask for a summary and a pass key in turn. */
import { Fresh } from '../draw.ts'
import type { Turn } from '../example.ts'
import { defineScbenchTask } from './frame.ts'
import { makePapers, papersContext, papersFor, summaryTurn } from './papers.ts'

const OWNERS = 'Anna Boris Clara Daniel Elena Felix Greta Henry Ingrid Jonas'.split(' ')
/** Pass keys in the text; with two papers there is room for as many. */
const NEEDLES = 5

export const summaryWithNeedles = defineScbenchTask({
  name: 'scbench_summary_with_needles',
  capability: 'multi-tasking',
  summary: 'summaries of papers and pass keys between them, in turn',
  write(setting) {
    const { r, length, roomFor } = setting
    const papers = makePapers(setting)
    const fresh = new Fresh()
    const owners = r.sample(OWNERS, Math.min(NEEDLES, papersFor(length)))
    const needles = owners.map((owner) => ({ owner, key: fresh.of(() => r.digits(5)) }))
    const lines = needles.map(({ owner, key }) => `The pass key of ${owner} is ${key}.`)
    const head = 'Read the papers below, and remember the pass keys that are hidden in them.\n\n'
    const context = papersContext(setting, head, papers, lines)
    const asked = r.sample(papers, needles.length)
    const turns = asked.flatMap((paper, i): Turn[] => {
      const { owner, key } = needles[i]!
      const question = `What is the pass key of ${owner}?`
      const passKey = { question, answers: [key], reference: key, metric: 'number', maxTokens: roomFor(key) } as const
      return [summaryTurn(paper, roomFor), passKey]
    })
    return { context, turns }
  },
})
