/**
 * What every task promises: the same example for the same seed, a context of its length, questions that the context alone
 * answers, and answers that score 1 where others score 0.
 */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import type { KvasirError } from '../../contract/errors.ts'
import { modelPath } from '../../engine/options.ts'
import { Tokenizer } from '../../model/tokenizer/tokenizer.ts'
import { score } from '../score.ts'
import type { Example } from './example.ts'
import { TOLERANCE } from './fill.ts'
import { TASKS, tasksNamed } from './index.ts'
import { proseText } from './prose.ts'

const SEEDS = [0, 1, 2, 3, 4]
let tokenizer: Tokenizer
const count = (text: string) => tokenizer.encode(text, { addSpecial: false }).length
const make = (task: string, length: number, seed: number) => tasksNamed([task])[0]!.make(seed, length, count)
const occurrences = (text: string, of: string) => text.split(of).length - 1
const examples = (task: string, length = 2048): Example[] => SEEDS.map((seed) => make(task, length, seed))

before(async () => {
  tokenizer = await Tokenizer.load(modelPath('house'))
})
after(() => tokenizer[Symbol.dispose]())

describe('every task', () => {
  for (const { name, make: write } of TASKS) {
    it(`${name}: contexts have their length`, () => {
      for (const length of [512, 1024, 2048, 4096, 8192]) {
        const { context } = write(7, length, count)
        const tokens = count(context)
        assert.ok(Math.abs(tokens - length) <= length * TOLERANCE, `${tokens} tokens for ${length}`)
      }
    })

    it(`${name}: one seed, one example; another, another`, () => {
      assert.deepEqual(write(3, 1024, count), write(3, 1024, count))
      assert.notEqual(write(3, 1024, count).context, write(4, 1024, count).context)
    })

    it(`${name}: the reference scores 1 and fits; another reply scores less`, () => {
      for (const example of examples(name)) {
        assert.ok(example.turns.length >= 1)
        for (const turn of example.turns) {
          assert.equal(score(turn.reference, turn), 1, JSON.stringify(turn))
          assert.ok(count(turn.reference) <= turn.maxTokens)
          assert.ok(score('No idea.', turn) < 0.2, JSON.stringify(turn))
        }
      }
    })

    it(`${name}: no question is asked twice`, () => {
      for (const { turns } of examples(name))
        if (name !== 'niah_multiquery') assert.equal(new Set(turns.map((t) => t.question)).size, turns.length)
    })
  }
})

describe('answers stand in the context as often as they should', () => {
  // Values that are random: once, and in no distractor, since those are in the context too.
  for (const name of ['niah_single', 'niah_multikey', 'niah_multiquery', 'kv', 'scbench_kv', 'scbench_prefix_suffix'])
    it(`${name}: once`, () => {
      for (const { context, turns } of examples(name))
        for (const answer of turns.flatMap((t) => t.answers)) assert.equal(occurrences(context, answer), 1, answer)
    })

  it('summary_with_needles: pass keys once', () => {
    for (const { context, turns } of examples('scbench_summary_with_needles'))
      for (const turn of turns.filter((t) => t.metric === 'number'))
        assert.equal(occurrences(context, turn.answers[0]!), 1)
  })

  it('repoqa, and with pairs: functions once, no two alike', () => {
    for (const { context, turns } of [...examples('scbench_repoqa'), ...examples('scbench_repoqa_and_kv')]) {
      for (const { answers, question } of turns) {
        assert.equal(occurrences(context, answers[0]!), 1)
        const name = answers[0]!.match(/^def (\w+)/)?.[1]
        if (name) assert.ok(!question.includes(name), 'a description that names its function')
      }
      const bodies = turns.flatMap((t) => t.options ?? []).map((code) => code.slice(code.indexOf('\n')))
      assert.equal(new Set(bodies).size, new Set(turns.flatMap((t) => t.options ?? [])).size)
    }
  })

  it('prefix_suffix: one word has both, others have one of the two', () => {
    for (const { context, turns } of examples('scbench_prefix_suffix')) {
      const words = context.slice(context.indexOf('[') + 1, -1).split(', ')
      for (const { question, answers } of turns) {
        const [, prefix, suffix] = question.match(/Prefix: (\w+); Suffix: (\w+)\./)!
        const [begin, end] = [words.filter((w) => w.startsWith(prefix!)), words.filter((w) => w.endsWith(suffix!))]
        assert.deepEqual(
          begin.filter((w) => end.includes(w)),
          answers,
        )
        assert.ok(begin.length > 1 && end.length > 1)
      }
    }
  })

  it('vt: following the assignments gives the answers', () => {
    for (const { context, turns } of [...examples('scbench_vt', 4096), ...examples('vt')]) {
      const assigned = new Map([...context.matchAll(/VAR (\w+) = (?:VAR )?(\w+)\./g)].map((m) => [m[1]!, m[2]!]))
      const follow = (name: string): string => (assigned.has(name) ? follow(assigned.get(name)!) : name)
      for (const { question, answers } of turns) {
        const value = question.match(/the value (\d+) in the text/)?.[1]
        const holders = [...assigned.keys()].filter((name) => follow(name) === value)
        const asked = question.match(/(?:VAR|variable) (\w+)[?.]/)?.[1]
        assert.deepEqual([...answers].sort(), value ? holders.sort() : [follow(asked!)])
      }
    }
  })

  it('mf: sorting the list gives the answers', () => {
    for (const { context, turns } of examples('scbench_mf')) {
      const numbers = context
        .slice(context.indexOf('[') + 1, -1)
        .split(', ')
        .map(Number)
        .sort((a, b) => a - b)
      const answer = (target: RegExp) => Number(turns.find((t) => target.test(t.question))!.answers[0])
      assert.equal(answer(/the largest/), numbers.at(-1))
      assert.equal(answer(/the smallest/), numbers[0])
      assert.equal(answer(/second largest/), Math.max(...numbers.filter((n) => n !== numbers.at(-1))))
      assert.equal(answer(/second smallest/), Math.min(...numbers.filter((n) => n !== numbers[0])))
      const below = numbers.filter((n) => n < answer(/median/)).length
      const above = numbers.filter((n) => n > answer(/median/)).length
      assert.ok(below <= numbers.length / 2 && above <= numbers.length / 2)
    }
  })

  it('qa_eng: the last sentence about somebody says where they are', () => {
    for (const { context, turns } of examples('scbench_qa_eng'))
      for (const { question, answers } of turns) {
        const person = question.match(/Where is (\w+) at the end/)?.[1]
        if (!person) continue
        const moves = [...context.matchAll(new RegExp(`${person} (?:walked|went|travelled) to the (\\w+)`, 'g'))]
        assert.equal(moves.at(-1)![1], answers[0])
      }
  })

  it('many_shot: the examples of a kind of word all have the label of the answer', () => {
    for (const { context, turns } of examples('scbench_many_shot')) {
      const kind = (word: string) => [word[0]!, word.at(-1)!].map((c) => 'aeiou'.includes(c)).join()
      const shown = [...context.matchAll(/(\w+) is (\w+)\./g)]
      assert.ok(shown.length > 50)
      for (const { question, answers } of turns) {
        const word = question.match(/the word (\w+) have/)![1]!
        const labels = new Set(shown.filter((m) => kind(m[1]!) === kind(word)).map((m) => m[2]))
        assert.deepEqual([...labels], answers)
        assert.ok(!shown.some((m) => m[1] === word))
      }
    }
  })

  it('choice: the letter is that of the option; letters differ', () => {
    const letters = new Set<string>()
    for (const { turns } of examples('scbench_choice_eng'))
      for (const { answers, options } of turns) {
        assert.equal(new Set(options).size, 4)
        letters.add(answers[0]!)
      }
    assert.ok(letters.size > 2)
  })

  it('rag and twohop: a statement about the one asked for holds the answer', () => {
    for (const { context, turns } of [...examples('rag'), ...examples('twohop')])
      for (const { reference, answers } of turns) {
        const [, founder] = reference.match(/was founded by (\w+ \w+)\. /) ?? []
        assert.ok(context.includes(answers[0]!))
        if (founder) assert.ok(occurrences(context, founder) >= 2, `${founder} must stand in two passages`)
      }
  })
})

it('prose has its length too, and no digits, which values have', () => {
  const text = proseText(1, 1024, count)
  assert.ok(Math.abs(count(text) - 1024) <= 1024 * TOLERANCE)
  assert.doesNotMatch(text, /\d/)
  const sentences = text.match(/[^.]+\./g)!
  assert.ok(new Set(sentences).size > 0.9 * sentences.length)
})

describe('names', () => {
  it('families stand for their tasks: the twelve of SCBench', () => {
    assert.equal(tasksNamed(['scbench']).length, 12)
    assert.equal(new Set(TASKS.map((t) => t.name)).size, TASKS.length)
  })

  it('an unknown one is refused with the nearest known', () => {
    assert.throws(
      () => tasksNamed(['niah_singel']),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && /Did you mean niah_single\?/.test(e.message),
    )
  })

  it('a length that cannot be written is refused', () => {
    assert.throws(
      () => make('scbench_summary', 100, 0),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && /must stand in it/.test(e.message),
    )
  })
})
