/**
 * What a task makes: a context and questions about it, after SCBench (Li et al., ICLR 2025, arXiv 2412.10319). Tasks are
 * generators, not files: one seed and length give the same example everywhere, and held-out seeds cost nothing.
 */
import type { Metric } from '../score.ts'
import { Draw } from './draw.ts'

export interface Turn {
  readonly question: string
  /** What a right reply holds; how much of it is right, `metric` says. */
  readonly answers: readonly string[]
  /** A right reply in full: what stands in the history that later turns see when that is to be golden. */
  readonly reference: string
  readonly metric: Metric
  /** Most tokens of a reply. */
  readonly maxTokens: number
  /** What the answer was chosen among: `letter`: the texts behind A, B, C, D; `similarity`: all functions of the context. */
  readonly options?: readonly string[]
}

export interface Example {
  readonly id: string
  readonly task: string
  /** Tokens of `context`, wanted; it has as many within 2 %. */
  readonly length: number
  readonly system?: string
  /** Instruction and text that all questions share. */
  readonly context: string
  /** Between the context and a question that follows it directly. */
  readonly separator: string
  readonly turns: readonly Turn[]
}

/** Tokens of a text, without special tokens. */
export type CountTokens = (text: string) => number

/** What the questions ask of a cache, as the paper sorts them. */
export type Capability = 'string retrieval' | 'semantic retrieval' | 'global information' | 'multi-tasking'

export interface Task {
  readonly name: string
  /** `scbench`: stand-ins for its 12 tasks, for any model. `house`: what the house model was trained to answer. */
  readonly family: 'scbench' | 'house'
  readonly capability: Capability
  readonly summary: string
  /** @throws KvasirError INVALID_ARGUMENT for lengths that the task cannot be written in. */
  make(seed: number, length: number, count: CountTokens): Example
}

/** What a task's writer is given. */
export interface Setting {
  readonly r: Draw
  /** Tokens that the context must have. */
  readonly length: number
  readonly count: CountTokens
  /** A bound on replies that leaves a right one room to be wordy. */
  readonly roomFor: (reference: string) => number
}

export type Written = Pick<Example, 'context' | 'turns'> & Partial<Pick<Example, 'system' | 'separator'>>

/** Tokens of a reply beyond those of the reference. */
const WORDY = 24

export function defineTask({
  write,
  ...task
}: Omit<Task, 'make'> & { readonly write: (setting: Setting) => Written }): Task {
  return {
    ...task,
    make(seed, length, count) {
      const id = `${task.name}-${length}-${seed}`
      const roomFor = (reference: string) => count(reference) + WORDY
      const written = write({ r: new Draw(id), length, count, roomFor })
      return { id, task: task.name, length, separator: '\n\n', ...written }
    },
  }
}

/** A turn whose reply is right when it holds `value`. */
export function valueTurn(question: string, value: string, roomFor: Setting['roomFor'], reference = value): Turn {
  return { question, answers: [value], reference, metric: 'substring', maxTokens: roomFor(reference) }
}
