/**
 * Stories whose facts move (as in bAbI, Weston et al. 2015): people go from place to place and carry things. A question
 * has one answer, of one word, at the time the story ends. One teller for two languages: only words and shapes differ.
 */
import type { Draw } from '../draw.ts'

export interface Language {
  readonly people: readonly string[]
  readonly places: readonly string[]
  readonly things: readonly string[]
  /** {p}: who, {l}: where, {t}: what. */
  readonly goes: readonly string[]
  readonly owns: readonly string[]
  readonly where: string
  readonly before: string
  readonly what: string
  readonly who: string
}

export interface StoryQuestion {
  readonly question: string
  readonly answer: string
  /** What kind of thing the answer is: others of it are wrong answers. */
  readonly kind: 'place' | 'thing' | 'person'
}

export interface Story {
  /** In order. They must stay so: the last move counts. */
  readonly sentences: readonly string[]
  readonly questions: readonly StoryQuestion[]
  readonly cast: Readonly<Record<StoryQuestion['kind'], readonly string[]>>
}

/** Each of the people owns one thing, which nobody else does, and goes to two or three different places. */
export function tellStory(r: Draw, language: Language, people: number): Story {
  const cast = {
    person: r.sample(language.people, people),
    thing: r.sample(language.things, people),
    place: language.places,
  }
  const owns = cast.person.map((p, i) => say(r.pick(language.owns), { p, t: cast.thing[i]! }))
  const routes = cast.person.map(() => r.sample(language.places, r.whole(2, 3)))
  // Who moves when is random; each one's moves keep their order.
  const order = r.shuffle(routes.flatMap((route, i) => route.map(() => i)))
  const step = routes.map(() => 0)
  const moves = order.map((i) => {
    const l = routes[i]![step[i]!]!
    step[i]!++
    return say(r.pick(language.goes), { p: cast.person[i]!, l })
  })
  const sentences = [...moves]
  for (const text of owns) sentences.splice(r.whole(0, sentences.length), 0, text)
  const questions = cast.person.flatMap((p, i): StoryQuestion[] => [
    { question: say(language.where, { p }), answer: routes[i]!.at(-1)!, kind: 'place' },
    { question: say(language.before, { p, l: routes[i]!.at(-1)! }), answer: routes[i]!.at(-2)!, kind: 'place' },
    { question: say(language.what, { p }), answer: cast.thing[i]!, kind: 'thing' },
    { question: say(language.who, { t: cast.thing[i]! }), answer: p, kind: 'person' },
  ])
  return { sentences, questions, cast }
}

function say(shape: string, parts: Readonly<Record<string, string>>): string {
  return shape.replace(/\{(\w)\}/g, (_, name: string) => parts[name]!)
}
