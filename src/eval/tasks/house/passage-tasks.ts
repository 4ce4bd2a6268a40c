/** Passages about people and companies: which one holds the answer, and answers that take two of them. */
import type { Setting, Turn } from '../example.ts'
import { fill } from '../fill.ts'
import { sentence } from '../prose.ts'
import { Entities } from './entities.ts'
import { companyPassage, FOUNDER_QUESTIONS, type Passage, personPassage } from './facts.ts'
import { defineHouseTask, factTurn, framed, intro, TURNS } from './frame.ts'

/** Tokens left when no further passage is tried; prose takes them. */
const ROOM = 90

export const rag = defineHouseTask({
  name: 'rag',
  capability: 'semantic retrieval',
  summary: 'numbered passages, each about one person or company',
  write(setting) {
    const { r } = setting
    const { context, passages } = numbered(setting, new Entities(r), [])
    const facts = r.sample(
      passages.flatMap((p) => p.facts),
      TURNS,
    )
    return framed(
      r,
      context,
      facts.map((f) => factTurn(setting, f)),
    )
  },
})

export const twohop = defineHouseTask({
  name: 'twohop',
  capability: 'semantic retrieval',
  summary: 'who founded a company stands in one passage, what is asked about the founder in another',
  write(setting) {
    const { r, length, roomFor } = setting
    const e = new Entities(r)
    const pairs = Array.from({ length: Math.max(1, Math.min(TURNS, Math.floor(length / 200))) }, () => {
      const founder = e.name
      const attribute = r.pick(Object.keys(FOUNDER_QUESTIONS))
      const company = companyPassage(e, r.whole(2, 3), founder)
      return { attribute, company, person: personPassage(e, 3, founder, attribute) }
    })
    const { context } = numbered(
      setting,
      e,
      pairs.flatMap((p) => [p.company, p.person]),
    )
    const turns = pairs.map(({ attribute, company, person }): Turn => {
      const { answer, value } = person.facts.find((f) => f.attribute === attribute)!
      const reference = `${company.subject} was founded by ${person.subject}. ${answer}`
      const question = FOUNDER_QUESTIONS[attribute]!.replace('{n}', company.subject)
      return { question, answers: [value], reference, metric: 'fraction', maxTokens: roomFor(reference) }
    })
    return framed(r, context, turns)
  },
})

/** `must` and as many further passages as fit, numbered in random order; prose behind them brings the length. */
function numbered(
  { r, length, count }: Setting,
  e: Entities,
  must: readonly Passage[],
): { readonly context: string; readonly passages: readonly Passage[] } {
  const head = intro(r)
  const label = r.pick(['Passage', 'Document', 'Note'])
  const size = (text: string) => count(` ${label} 10: ${text}`)
  const passages = [...must]
  let left = length - passages.reduce((sum, p) => sum + size(p.text), count(head))
  while (left > ROOM) {
    const next = r.chance(0.72) ? personPassage(e, r.whole(2, 5)) : companyPassage(e, r.whole(2, 4))
    if ((left -= size(next.text)) > 0) passages.push(next)
  }
  const body = r.shuffle(passages).map(({ text }, i) => `${label} ${i + 1}: ${text}`)
  const render = (units: readonly string[]) => [head, ...body, ...units].join(' ')
  const prose = fill({ length, count }, { render, next: (room) => sentence(r, room) })
  return { context: render(prose), passages }
}
