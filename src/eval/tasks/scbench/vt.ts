/**
 * Retr.MultiHop: RULER's variable tracking. Chains of assignments in prose; which variables hold the first chain's value,
 * which the second's, and what three given variables hold. Other chains distract from 4 K tokens up.
 */
import { Fresh } from '../draw.ts'
import { type Turn, valueTurn } from '../example.ts'
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'
import { defineScbenchTask } from './frame.ts'

const CHAINS = 2
const HOPS = 2
/** Further chains that nobody asks for. */
const distractors = (length: number) => (length < 4096 ? 0 : 2)

export const vt = defineScbenchTask({
  name: 'scbench_vt',
  capability: 'string retrieval',
  summary: 'variables that hold a value, over chains of assignments',
  write({ r, length, count, roomFor }) {
    const fresh = new Fresh()
    const chains = Array.from({ length: CHAINS + distractors(length) }, () => {
      const names = Array.from({ length: HOPS + 1 }, () => fresh.of(() => r.symbols('ABCDEFGHIJKLMNOPQRSTUVWXYZ', 5)))
      const value = fresh.of(() => r.digits(5))
      return { names, value, lines: names.map((n, i) => `VAR ${n} = ${i === 0 ? value : `VAR ${names[i - 1]}`}.`) }
    })
    const head = 'Memorize and track the chains of variable assignments hidden in the following text.\n\n'
    const lines = chains.flatMap((c) => c.lines)
    const filler = fill(
      { length, count },
      { render: (units) => head + [...lines, ...units].join(' '), next: (room) => sentence(r, room) },
    )
    // Chain by chain into the text, so that each keeps its order and they mix.
    const body = chains.reduce<readonly string[]>((text, chain) => scatter(r, text, chain.lines), filler)
    const asked = chains.slice(0, CHAINS)
    const all = asked.map(({ names, value }): Turn => {
      const reference = names.join(', ')
      const question = `Find all variables that are assigned the value ${value} in the text above.`
      return { question, answers: names, reference, metric: 'fraction', maxTokens: roomFor(reference) }
    })
    const single = r
      .sample(
        asked.flatMap(({ names, value }) => names.map((name) => ({ name, value }))),
        3,
      )
      .map(({ name, value }) => valueTurn(`What is the value of the variable ${name}?`, value, roomFor))
    return { context: head + body.join(' '), turns: [...all, ...single] }
  },
})
