/**
 * Retr.KV: a JSON object of random pairs; the value of one key, for five keys, one from each fifth of the object, in
 * random order. Nothing in it can be guessed or compressed.
 */
import { fill } from '../fill.ts'
import { defineScbenchTask, TURNS } from './frame.ts'
import { Pairs, pairTurn } from './pairs.ts'

export const kv = defineScbenchTask({
  name: 'scbench_kv',
  capability: 'string retrieval',
  summary: 'values of random keys in a JSON object',
  write({ r, length, count, roomFor }) {
    const pairs = new Pairs(r)
    const render = (units: readonly string[]) =>
      `Extract the value for the given key from the JSON object below.\n\n{${units.join(', ')}}`
    const units = fill({ length, count }, { render, next: () => pairs.make() })
    const asked = Array.from({ length: TURNS }, (_, i) => {
      const cut = (j: number) => Math.floor((j * units.length) / TURNS)
      return pairs.of(r.pick(units.slice(cut(i), cut(i + 1))))
    })
    return { context: render(units), turns: r.shuffle(asked).map((pair) => pairTurn(pair, roomFor)) }
  },
})
