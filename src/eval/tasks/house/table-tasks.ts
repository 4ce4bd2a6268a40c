/** Keys and values, chains of variables, labels, and counting. */
import type { Turn } from '../example.ts'
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'
import { Entities } from './entities.ts'
import { defineHouseTask, framed, intro, TURNS } from './frame.ts'

export const kv = defineHouseTask({
  name: 'kv',
  capability: 'string retrieval',
  summary: 'a JSON object of keys and values',
  write({ r, length, count, roomFor }) {
    const e = new Entities(r)
    const kind = e.valueKind
    const makeKey = r.pick([() => e.words, () => e.hex(6)])
    const head = r.pick([
      'Here is a table of keys and values.',
      'JSON data:',
      'Extract the value of the key from the JSON object below.',
    ])
    const pairs = new Map<string, { readonly key: string; readonly value: string }>()
    const make = () => {
      const [key, value] = [makeKey(), e.value(kind)]
      const text = `"${key}": "${value}"`
      pairs.set(text, { key, value })
      return text
    }
    const render = (units: readonly string[]) => `${head} {${units.join(', ')}}`
    const units = r.shuffle(fill({ length, count }, { render, next: make }))
    const questions = [
      'What is the value for the key "{k}"?',
      'What is the value of "{k}"?',
      'Look up "{k}".',
      'Which value does the key "{k}" have?',
    ]
    const turns = r.sample(units, TURNS).map((unit): Turn => {
      const { key, value } = pairs.get(unit)!
      const question = r.pick(questions).replace('{k}', key)
      return { question, answers: [value], reference: unit, metric: 'fraction', maxTokens: roomFor(unit) }
    })
    return framed(r, render(units), turns)
  },
})

export const vt = defineHouseTask({
  name: 'vt',
  capability: 'string retrieval',
  summary: 'chains of variables in prose: what is the value at the end of one?',
  write({ r, length, count, roomFor }) {
    const e = new Entities(r)
    const hops = r.whole(1, 3)
    const chains = Array.from({ length: r.whole(1, Math.max(1, Math.min(TURNS, Math.floor(length / 120)))) }, () => {
      const names = Array.from({ length: hops + 1 }, () => e.word)
      const value = e.value('number')
      return { names, value, lines: names.map((name, i) => `VAR ${name} = ${i === 0 ? value : names[i - 1]}.`) }
    })
    // Each chain's lines stay in order; whose line comes next is random.
    const order = r.shuffle(chains.flatMap((chain) => chain.lines.map(() => chain)))
    const at = new Map(chains.map((chain) => [chain, 0]))
    const lines = order.map((chain) => {
      const i = at.get(chain)!
      at.set(chain, i + 1)
      return chain.lines[i]!
    })
    const head = intro(r)
    const render = (units: readonly string[]) => [head, ...lines, ...units].join(' ')
    const filler = fill({ length, count }, { render, next: (room) => sentence(r, room) })
    const turns = r.shuffle(chains).map(({ names, value, lines: chain }): Turn => {
      const reference = [...chain].reverse().join(' ')
      const say = ['What is the value of VAR {}?', 'Find the value of VAR {}.']
      const question = r.pick(say).replace('{}', names.at(-1)!)
      return { question, answers: [value], reference, metric: 'fraction', maxTokens: roomFor(reference) }
    })
    return framed(r, [head, ...scatter(r, filler, lines)].join(' '), turns)
  },
})

export const mapping = defineHouseTask({
  name: 'mapping',
  capability: 'string retrieval',
  summary: 'a list of words, each with one of a few labels',
  write({ r, length, count, roomFor }) {
    const e = new Entities(r)
    const labels = Array.from({ length: r.whole(3, 9) }, (_, i) => String(i))
    const arrow = r.pick([' -> ', ' = ', ': '])
    const head = r.pick(['Learn these labels.', 'Examples:', 'Each word has a label.'])
    const render = (units: readonly string[]) => `${head} ${units.join(', ')}.`
    const make = () => `${e.words}${arrow}${r.pick(labels)}`
    const units = r.shuffle(fill({ length, count }, { render, next: make }))
    const turns = r.sample(units, TURNS).map((unit): Turn => {
      const [word, label] = unit.split(arrow) as [string, string]
      const question = r.pick(['Which label does {} have?', 'What is the label of {}?']).replace('{}', word)
      return { question, answers: [label], reference: unit, metric: 'fraction', maxTokens: roomFor(unit) }
    })
    return framed(r, render(units), turns)
  },
})

export const freq = defineHouseTask({
  name: 'freq',
  capability: 'global information',
  summary: 'which word of a list comes most often?',
  write({ r, length, count, roomFor }) {
    const e = new Entities(r)
    const target = e.word
    const others = Array.from({ length: 20 }, () => e.word)
    const share = r.whole(30, 50) / 100
    const head = r.pick(['Here is a list of words.', 'Words:'])
    const render = (units: readonly string[]) => `${head} ${units.join(' ')}.`
    const units = fill({ length, count }, { render, next: () => (r.chance(share) ? target : r.pick(others)) })
    const question = r.pick(['Which word appears most often?', 'What is the most frequent word?'])
    const turn: Turn = {
      question,
      answers: [target],
      reference: target,
      metric: 'fraction',
      maxTokens: roomFor(target),
    }
    return framed(r, render(r.shuffle(units)), [turn])
  },
})
