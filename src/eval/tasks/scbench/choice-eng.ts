/** En.MultiChoice: the stories of qa_eng with four options each, all of them from the story. */

import { englishStory } from './english.ts'
import { defineScbenchTask, TURNS } from './frame.ts'

const OPTIONS = 4

export const choiceEng = defineScbenchTask({
  name: 'scbench_choice_eng',
  capability: 'semantic retrieval',
  summary: 'questions about a story with four options',
  write(setting) {
    const { r, roomFor } = setting
    const { context, story } = englishStory(setting, 'Read the book below and answer the questions.\n\n')
    const turns = r
      .sample(
        story.questions.filter((q) => story.cast[q.kind].length >= OPTIONS),
        TURNS,
      )
      .map(({ question, answer, kind }) => {
        const wrong = story.cast[kind].filter((other) => other !== answer)
        const options = r.shuffle([answer, ...r.sample(wrong, OPTIONS - 1)])
        const lines = options.map((option, i) => `${'ABCD'[i]}. ${option}`).join('\n')
        const letter = 'ABCD'[options.indexOf(answer)]!
        return {
          question: `${question}\n${lines}\nThe letter of the correct answer is:`,
          answers: [letter],
          reference: letter,
          metric: 'letter',
          maxTokens: roomFor(letter),
          options,
        } as const
      })
    return { context, turns }
  },
})
