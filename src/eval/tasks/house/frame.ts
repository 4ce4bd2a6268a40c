/** What the house model's tasks have in common: the form of their prompts, and prose with things hidden in it. */
import type { Draw } from '../draw.ts'
import { defineTask, type Setting, type Task, type Turn, type Written } from '../example.ts'
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'
import { ask, type Fact } from './facts.ts'

const INTROS = [
  'Read the following text and answer the question.',
  'Here is some text.',
  'Some facts are hidden in the following text. Memorize them.',
  'Text:',
  'Use the text to answer the question.',
]
const SEPARATORS = ['\n', '\n\n', ' ', '\nQuestion: ', '\n\nQuestion: ']
const SYSTEMS = [
  'You are a helpful assistant.',
  'You answer questions about the given text.',
  'Be brief and exact.',
  'You are a careful reader.',
]

export function defineHouseTask(task: Omit<Parameters<typeof defineTask>[0], 'family'>): Task {
  return defineTask({ ...task, family: 'house' })
}

/** Questions of an example, as in SCBench. */
export const TURNS = 5

/** A prompt as in training: now and then with a system message, and with any of the separators. */
export function framed(r: Draw, context: string, turns: readonly Turn[]): Written {
  return { ...(r.chance(0.15) ? { system: r.pick(SYSTEMS) } : {}), context, separator: r.pick(SEPARATORS), turns }
}

export const intro = (r: Draw): string => r.pick(INTROS)

/** Prose that brings the context to its length, with `inserts` at random places. */
export function hidden({ r, length, count }: Setting, inserts: readonly string[]): string {
  const head = intro(r)
  const filler = fill(
    { length, count },
    {
      render: (units) => [head, ...inserts, ...units].join(' '),
      next: (room) => sentence(r, room),
    },
  )
  return [head, ...scatter(r, filler, r.shuffle(inserts))].join(' ')
}

/** A turn about a fact; its value must be in the reply. */
export function factTurn({ r, roomFor }: Setting, fact: Fact): Turn {
  const { question, reference } = ask(r, fact)
  return { question, answers: [fact.value], reference, metric: 'fraction', maxTokens: roomFor(reference) }
}
