/**
 * ICL.ManyShot: labelled examples of a hidden rule, then new items. The rule: two features of a made-up word, whether it
 * begins with a vowel and whether it ends with one, decide which of four labels it has. Which is which differs with each
 * example.
 */
import { type Draw, Fresh } from '../draw.ts'
import { fill } from '../fill.ts'
import { defineScbenchTask, TURNS } from './frame.ts'

const LABELS = 'amber cedar ivory cobalt maple onyx'.split(' ')
const VOWELS = 'aeiou'
const CONSONANTS = 'bdfgklmnprstvz'

const isVowel = (letter: string) => VOWELS.includes(letter)
/** 0 to 3 */
const features = (word: string) => Number(isVowel(word[0]!)) * 2 + Number(isVowel(word.at(-1)!))

function madeUpWord(r: Draw): string {
  const syllables = Array.from({ length: r.whole(2, 3) }, () => r.symbols(CONSONANTS, 1) + r.symbols(VOWELS, 1)).join(
    '',
  )
  return (r.chance(0.5) ? r.symbols(VOWELS, 1) : '') + syllables + (r.chance(0.5) ? r.symbols(CONSONANTS, 1) : '')
}

export const manyShot = defineScbenchTask({
  name: 'scbench_many_shot',
  capability: 'global information',
  summary: 'labels of new words by a rule that only examples show',
  write({ r, length, count, roomFor }) {
    const labels = r.sample(LABELS, 4)
    const fresh = new Fresh()
    const word = () => fresh.of(() => madeUpWord(r))
    const label = (w: string) => labels[features(w)]!
    const demo = () => {
      const w = word()
      return `${w} is ${label(w)}.`
    }
    const render = (units: readonly string[]) =>
      `Each word has a label. Learn from the examples which words have which.\n\n${units.join(' ')}`
    const context = render(fill({ length, count }, { render, next: demo }))
    const turns = Array.from({ length: TURNS }, () => {
      const w = word()
      const answer = label(w)
      return {
        question: `Question: Which label does the word ${w} have: ${labels.join(', ')}?\nAnswer:`,
        answers: [answer],
        reference: answer,
        metric: 'contained',
        maxTokens: roomFor(answer),
      } as const
    })
    return { context, turns }
  },
})
