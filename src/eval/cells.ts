/** What is evaluated, cell by cell: a task at a length. A cell's examples are made when their turn comes. */
import { type EvalExample, readExamples } from './data.ts'
import { type History, type Mode, planSteps, type Step, stepsOfMessages } from './plan.ts'
import type { Scored } from './score.ts'
import type { CountTokens, Task } from './tasks/example.ts'

/** An example as the runner needs it: what to ask, and how to judge. */
export interface Playable {
  readonly steps: readonly Step[]
  /** Of each step. */
  readonly turns: readonly (Scored & { readonly maxTokens: number })[]
}

export interface Cell {
  readonly task: string
  readonly length: number
  readonly mode: Mode
  readonly history: History
  /** Of its first example; null: the examples come from a file. */
  readonly seed: number | null
  /** Examples. */
  readonly n: number
  /** `i`: 0 to n - 1. */
  readonly example: (i: number) => Playable
}

export interface TaskCellOptions {
  readonly tasks: readonly Task[]
  readonly lengths: readonly number[]
  readonly mode: Mode
  readonly history: History
  /** Example i of each cell has this seed + i. */
  readonly seed: number
  /** Examples of each cell. */
  readonly n: number
  /** Tokens by the vocabulary of the model that is asked. */
  readonly count: CountTokens
}

export function taskCells({ tasks, lengths, n, count, ...common }: TaskCellOptions): Cell[] {
  const { mode, history, seed } = common
  return tasks.flatMap((task) =>
    lengths.map((length) => ({
      ...common,
      task: task.name,
      length,
      n,
      example: (i) => {
        const example = task.make(seed + i, length, count)
        return { steps: planSteps(example, { mode, history }), turns: example.turns }
      },
    })),
  )
}

export interface FileCellOptions {
  readonly files: readonly string[]
  /** Most examples of each task and length: the first ones. Default: all. */
  readonly limit?: number
  /** Default: all there are. */
  readonly lengths?: readonly number[]
  readonly tasks?: readonly string[]
}

/** @throws KvasirError INVALID_ARGUMENT for files that are not of the format */
export function fileCells({ files, limit, lengths, tasks }: FileCellOptions): Cell[] {
  const wanted = files
    .flatMap(readExamples)
    .filter((e) => (lengths?.includes(e.length) ?? true) && (tasks?.includes(e.task) ?? true))
  const groups = new Map<string, EvalExample[]>()
  for (const e of wanted) {
    const key = `${e.task} ${e.length}`
    groups.set(key, [...(groups.get(key) ?? []), e])
  }
  return [...groups.values()].map((all): Cell => {
    const examples = all.slice(0, limit)
    const { task, length } = examples[0]!
    return {
      task,
      length,
      mode: 'multi-turn',
      history: 'golden',
      seed: null,
      n: examples.length,
      example: (i) => {
        const { messages, answers, metric, maxTokens } = examples[i]!
        return {
          steps: stepsOfMessages(messages),
          turns: answers.map((turn) => ({ answers: turn, metric, maxTokens })),
        }
      },
    }
  })
}
