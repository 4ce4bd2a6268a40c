/** Needles in prose: one, one of many, several of many, and needles among facts over five turns. */
import { Entities } from './entities.ts'
import { needles, personPassage } from './facts.ts'
import { defineHouseTask, factTurn, framed, hidden, TURNS } from './frame.ts'

export const niahSingle = defineHouseTask({
  name: 'niah_single',
  capability: 'string retrieval',
  summary: 'one needle in prose',
  write(setting) {
    const { r } = setting
    const [needle] = needles(new Entities(r), 1)
    return framed(r, hidden(setting, [needle!.statement]), [factTurn(setting, needle!)])
  },
})

export const niahMultikey = defineHouseTask({
  name: 'niah_multikey',
  capability: 'string retrieval',
  summary: 'many needles of one wording; up to five are asked for, one by one',
  write(setting) {
    const { r, length } = setting
    const all = needles(new Entities(r), r.whole(3, Math.max(3, Math.min(40, Math.floor(length / 50)))))
    const context = hidden(
      setting,
      all.map((n) => n.statement),
    )
    return framed(
      r,
      context,
      r.sample(all, TURNS).map((n) => factTurn(setting, n)),
    )
  },
})

export const niahMultiquery = defineHouseTask({
  name: 'niah_multiquery',
  capability: 'string retrieval',
  summary: 'many needles; each question asks for two to four at once',
  write(setting) {
    const { r, length, roomFor } = setting
    const all = needles(new Entities(r), r.whole(4, Math.max(4, Math.min(12, Math.floor(length / 60)))))
    const context = hidden(
      setting,
      all.map((n) => n.statement),
    )
    const turns = Array.from({ length: TURNS }, () => {
      const asked = r.sample(all, r.whole(2, 4))
      const keys = asked.map((n) => n.key)
      const list = `${keys.slice(0, -1).join(', ')} and ${keys.at(-1)}`
      const say = ['What are the values for {}?', 'Give me the values for {}.', 'List the values that belong to {}.']
      const reference = `${asked.map((n) => `${n.key}: ${n.value}`).join('; ')}.`
      return {
        question: r.pick(say).replace('{}', list),
        answers: asked.map((n) => n.value),
        reference,
        metric: 'fraction',
        maxTokens: roomFor(reference),
      } as const
    })
    return framed(r, context, turns)
  },
})

export const multiturn = defineHouseTask({
  name: 'multiturn',
  capability: 'multi-tasking',
  summary: 'needles and facts about people in prose, asked for in turn',
  write(setting) {
    const { r, length } = setting
    const e = new Entities(r)
    const hiddenNeedles = needles(e, Math.max(2, Math.min(12, Math.floor(length / 120))))
    const people = Array.from({ length: Math.max(2, Math.min(10, Math.floor(length / 200))) }, () =>
      personPassage(e, r.whole(1, 3)),
    )
    const context = hidden(setting, [...hiddenNeedles.map((n) => n.statement), ...people.map((p) => p.text)])
    const asked = r.sample([...hiddenNeedles, ...people.flatMap((p) => p.facts)], TURNS)
    return framed(
      r,
      context,
      asked.map((f) => factTurn(setting, f)),
    )
  },
})
