/** What is evaluated, cell by cell: a task at a length, and the treatments of it. Examples are made when their turn comes. */
import { KvasirError } from '../contract/errors.ts'
import { type EvalExample, readExamples } from './data.ts'
import { type CompressAt, type History, type Mode, planSteps, type Step, stepsOfMessages, usualMoment } from './plan.ts'
import type { Scored } from './score.ts'
import type { CountTokens, Task } from './tasks/example.ts'
import { proseText } from './tasks/prose.ts'
import { FULL, type Treatment, treatmentsOf } from './treatments.ts'

/** What to ask, and how to judge. */
export interface Dialogue {
  readonly kind: 'dialogue'
  readonly steps: readonly Step[]
  /** Of each step. */
  readonly turns: readonly (Scored & { readonly maxTokens: number })[]
  /** For policies that draw by chance. */
  readonly seed: number
}

/** A text whose first tokens are the prompt, and whose next ones are to be predicted, place by place. */
export interface Passage {
  readonly kind: 'passage'
  readonly text: string
  /** Tokens. */
  readonly prompt: number
  readonly continuation: number
  /** For policies that draw by chance. */
  readonly seed: number
}

export interface Cell {
  readonly task: string
  readonly length: number
  readonly mode: Mode | 'forced'
  readonly history: History
  /** Of its first example; null: the examples come from a file. */
  readonly seed: number | null
  /** Examples. */
  readonly n: number
  readonly treatments: readonly Treatment[]
  /** `i`: 0 to n - 1. */
  readonly example: (i: number) => Dialogue | Passage
}

/** What is compared. Default: the full cache alone. */
export interface TreatmentOptions {
  readonly policies?: readonly string[]
  readonly budgets?: readonly (number | string)[]
  /** `default`: the usual one of the mode. */
  readonly compressAt?: readonly (CompressAt | 'default')[]
}

export interface SeedOptions {
  readonly lengths: readonly number[]
  /** Example i of each cell has this seed + i. */
  readonly seed: number
  /** Examples of each cell. */
  readonly n: number
  /** Tokens by the vocabulary of the model that is asked. */
  readonly count: CountTokens
}

export interface TaskCellOptions extends SeedOptions, TreatmentOptions {
  readonly tasks: readonly Task[]
  readonly modes: readonly Mode[]
  readonly history: History
}

/** @throws KvasirError INVALID_ARGUMENT for policies and budgets that do not exist */
export function taskCells({ tasks, modes, lengths, history, seed, n, count, ...compared }: TaskCellOptions): Cell[] {
  return modes.flatMap((mode) => {
    const treatments = treatmentsIn(mode, compared)
    return tasks.flatMap((task) =>
      lengths.map((length): Cell => {
        const example = (i: number): Dialogue => {
          const made = task.make(seed + i, length, count)
          return { kind: 'dialogue', steps: planSteps(made, { mode, history }), turns: made.turns, seed: seed + i }
        }
        return { task: task.name, length, mode, history, seed, n, treatments, example }
      }),
    )
  })
}

/** The name of the task that asks nothing: how far predictions move from the full cache's. */
export const PROSE = 'prose'
/** Tokens predicted of each text. */
const CONTINUATION = 64

/** Prose is compressed where it is cut: there is no question that could be in view or not. */
export function proseCells({
  lengths,
  seed,
  n,
  count,
  ...compared
}: SeedOptions & Omit<TreatmentOptions, 'compressAt'>): Cell[] {
  const treatments = treatmentsOf(compared.policies ?? [FULL.policy], compared.budgets ?? [], [null])
  return lengths.map((length): Cell => {
    const example = (i: number): Passage => ({
      kind: 'passage',
      // A text is 2 % shorter or longer than it should be.
      text: proseText(seed + i, Math.ceil((length + CONTINUATION) * 1.05), count),
      prompt: length,
      continuation: CONTINUATION,
      seed: seed + i,
    })
    return { task: PROSE, length, mode: 'forced', history: 'golden', seed, n, treatments, example }
  })
}

export interface FileCellOptions extends TreatmentOptions {
  readonly files: readonly string[]
  /** Most examples of each task and length: the first ones. Default: all. */
  readonly limit?: number
  /** Default: all there are. */
  readonly lengths?: readonly number[]
  readonly tasks?: readonly string[]
}

/** @throws KvasirError INVALID_ARGUMENT for files that are not of the format */
export function fileCells({ files, limit, lengths, tasks, ...compared }: FileCellOptions): Cell[] {
  if (compared.compressAt?.includes('context'))
    throw new KvasirError(
      'INVALID_ARGUMENT',
      'files do not say where the context ends and the question begins, so the cache cannot be shortened between them. Leave ' +
        'compress-at at question, or use generated tasks',
    )
  const treatments = treatmentsIn('multi-turn', compared)
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
    const example = (i: number): Dialogue => {
      const { messages, answers, metric, maxTokens } = examples[i]!
      const turns = answers.map((turn) => ({ answers: turn, metric, maxTokens }))
      return { kind: 'dialogue', steps: stepsOfMessages(messages), turns, seed: i }
    }
    const n = examples.length
    return { task, length, mode: 'multi-turn', history: 'golden', seed: null, n, treatments, example }
  })
}

function treatmentsIn(mode: Mode, { policies = [FULL.policy], budgets = [], compressAt }: TreatmentOptions) {
  const moments = (compressAt ?? ['default']).map((at) => (at === 'default' ? usualMoment(mode) : at))
  return treatmentsOf(policies, budgets, [...new Set(moments)])
}
