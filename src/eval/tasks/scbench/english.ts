/** English stories: their words, and prose between their sentences. */
import type { Setting } from '../example.ts'
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'
import { type Language, type Story, tellStory } from './stories.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

const ENGLISH: Language = {
  people: words(`Anna Boris Clara Daniel Elena Felix Greta Henry Ingrid Jonas Karin Louis Nora Oscar Paula Quentin Rosa
    Simon Tessa Ursula Victor Wanda Yvonne Walter`),
  places: words(`library kitchen harbour museum bakery theatre hospital station school castle tower lighthouse orchard
    workshop palace temple`),
  things:
    words(`violin telescope compass lantern dictionary chessboard trumpet sword necklace kite hammer crown microscope
    hourglass drum saddle accordion medal thimble magnet camera anchor sundial flute`),
  goes: ['{p} walked to the {l}.', '{p} went to the {l}.', '{p} travelled to the {l}.'],
  owns: ['{p} always carried a {t}.', '{p} owned a {t}.'],
  where: 'Where is {p} at the end of the story?',
  before: 'Where was {p} before going to the {l}?',
  what: 'Which thing belongs to {p}?',
  who: 'Who owns the {t}?',
}

/** A story in prose, `length` tokens with `head` in front. */
export function englishStory(
  { r, length, count }: Setting,
  head: string,
): { readonly context: string; readonly story: Story } {
  const story = tellStory(r, ENGLISH, peopleFor(length))
  const render = (units: readonly string[]) => head + units.join(' ')
  const filler = fill(
    { length, count },
    { render: (more) => render([...story.sentences, ...more]), next: (room) => sentence(r, room) },
  )
  return { context: render(scatter(r, filler, story.sentences)), story }
}

/** People of a story: enough for five questions at 512 tokens, no more than there are names. */
export const peopleFor = (length: number): number => Math.max(3, Math.min(20, Math.floor(length / 150)))
