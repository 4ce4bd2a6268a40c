/** Mix.RepoQA+KV: functions with random pairs between them; turns ask for a function and a value in turn. */
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'
import { defineScbenchTask } from './frame.ts'
import { Functions, functionTurn, remark } from './functions.ts'
import { Pairs, pairTurn } from './pairs.ts'

/** Tokens of context for each pair. */
const TOKENS_PER_PAIR = 80
/** See repoqa.ts. */
const ROOM = 140
/** Of each kind. */
const TURNS = 3

export const repoqaAndKv = defineScbenchTask({
  name: 'scbench_repoqa_and_kv',
  capability: 'multi-tasking',
  summary: 'functions by description and values by key, in turn',
  write({ r, length, count, roomFor }) {
    const functions = new Functions(r)
    const pairs = new Pairs(r)
    const lines = Array.from({ length: Math.max(3, Math.floor(length / TOKENS_PER_PAIR)) }, () => pairs.make())
    const render = (units: readonly string[]) =>
      `Below are functions, and pairs of keys and values between them. Answer the questions about them.\n\n${units.join('\n\n')}`
    const next = (room: number) => (room < ROOM ? remark(sentence(r, room)) : functions.make())
    const units = r.shuffle(fill({ length, count }, { render: (more) => render([...lines, ...more]), next }))
    const all = units.filter((unit) => unit.startsWith('def '))
    const values = r.sample(lines, TURNS)
    const turns = r
      .sample(all, TURNS)
      .flatMap((code, i) => [functionTurn(functions.of(code), all, roomFor), pairTurn(pairs.of(values[i]!), roomFor)])
    return { context: render(scatter(r, units, lines)), turns }
  },
})
