/**
 * Math.Find: a list of numbers of three digits; its largest, smallest, second largest and second smallest number, and its
 * median. The numbers come from a part of the range that differs with each example: else 999 were always right.
 */
import { fill } from '../fill.ts'
import { defineScbenchTask } from './frame.ts'

type Numbers = readonly number[]

/** `sorted`: all numbers, rising; `distinct`: each once. */
const TARGETS: Readonly<Record<string, (sorted: Numbers, distinct: Numbers) => number>> = {
  'largest number': (_, distinct) => distinct.at(-1)!,
  'smallest number': (_, distinct) => distinct[0]!,
  'second largest number (equal numbers count once)': (_, distinct) => distinct.at(-2)!,
  'second smallest number (equal numbers count once)': (_, distinct) => distinct[1]!,
  // Of an even count the lower one of the two in the middle: so the median is always in the list.
  'median (of two middle numbers the lower one)': (sorted) => sorted[Math.ceil(sorted.length / 2) - 1]!,
}

export const mf = defineScbenchTask({
  name: 'scbench_mf',
  capability: 'global information',
  summary: 'extremes and the median of a list of numbers',
  write({ r, length, count, roomFor }) {
    const low = r.whole(100, 499)
    const high = r.whole(low + 300, 999)
    const render = (units: readonly string[]) => `Find numbers in the list below.\n\n[${units.join(', ')}]`
    const units = fill({ length, count }, { render, next: () => String(r.whole(low, high)) })
    const sorted = units.map(Number).sort((a, b) => a - b)
    const distinct = [...new Set(sorted)]
    const turns = r.shuffle(Object.entries(TARGETS)).map(([target, find]) => {
      const answer = String(find(sorted, distinct))
      return {
        question: `What is the ${target} of the list?\nThe ${target} is:`,
        answers: [answer],
        reference: answer,
        metric: 'number',
        maxTokens: roomFor(answer),
      } as const
    })
    return { context: render(units), turns }
  },
})
