/**
 * Code.RepoQA: a file of functions; repeat the one that a description, which does not name it, is about. Scored by
 * similarity, which stands in for pass@1 (score-similarity.ts).
 */
import { fill } from '../fill.ts'
import { sentence } from '../prose.ts'
import { defineScbenchTask, TURNS } from './frame.ts'
import { Functions, functionTurn, remark } from './functions.ts'

/** Tokens left when no further function is tried. Functions take about 120 with small vocabularies. */
const ROOM = 140

export const repoqa = defineScbenchTask({
  name: 'scbench_repoqa',
  capability: 'semantic retrieval',
  summary: 'the function that a description is about',
  write({ r, length, count, roomFor }) {
    const functions = new Functions(r)
    const render = (units: readonly string[]) =>
      `Based on the functions below, find the one that is described.\n\n${units.join('\n\n')}`
    const next = (room: number) => (room < ROOM ? remark(sentence(r, room)) : functions.make())
    const units = r.shuffle(fill({ length, count }, { render, next }))
    const all = units.filter((unit) => unit.startsWith('def '))
    const turns = r.sample(all, TURNS).map((code) => functionTurn(functions.of(code), all, roomFor))
    return { context: render(units), turns }
  },
})
