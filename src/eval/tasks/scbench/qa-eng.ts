/** En.QA: a story in long prose; short questions with one-word answers, about where people are, were, and what they own. */

import { englishStory } from './english.ts'
import { defineScbenchTask, TURNS } from './frame.ts'

export const qaEng = defineScbenchTask({
  name: 'scbench_qa_eng',
  capability: 'semantic retrieval',
  summary: 'questions about a story whose facts move',
  write(setting) {
    const { r, roomFor } = setting
    const { context, story } = englishStory(setting, 'Read the book below and answer the questions concisely.\n\n')
    const turns = r.sample(story.questions, TURNS).map(
      ({ question, answer }) =>
        ({
          question: `Question: ${question}\nAnswer:`,
          answers: [answer],
          reference: answer,
          metric: 'contained',
          maxTokens: roomFor(answer),
        }) as const,
    )
    return { context, turns }
  },
})
