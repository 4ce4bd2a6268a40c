/** CompressKV's two measurements, one after the other: the second selects rows with the heads of the first. */
import { KvasirError } from '../../contract/errors.ts'
import { TASKS, tasksNamed } from '../tasks/index.ts'
import { layerErrors } from './layer-error.ts'
import { checkWhole, type Measurement } from './measurement.ts'
import { needleScores, rankHeads } from './needle-heads.ts'
import type { Subject } from './subject.ts'
import { needlePrompt, taskPrompt } from './texts.ts'

export interface CompressKvSettings {
  /** Tokens of the texts. */
  readonly lengths: readonly number[]
  /** Needle prompts of each length, at as many depths; and prompts of each task, over all lengths in turn. */
  readonly limit: number
  /** Tasks whose prompts the layers' errors are measured on. */
  readonly tasks: readonly string[]
  /** Most tokens of the answers that errors are measured on. */
  readonly steps: number
  readonly seed: number
}

/** Ours: the spec's 2 K, and shorter. */
const LENGTHS = [512, 1024, 2048]
/** The authors have 10 depths, and 10 examples of each data set in their fast version. */
const LIMIT = 10
/** Ours. */
const STEPS = 32
/** Tokens of question and template beside the text, and of the answer. */
const ROOM = 512

export const compresskv: Measurement<CompressKvSettings> = {
  policy: 'compresskv',
  unit: 'prompts',

  complete({ lengths, limit = LIMIT, tasks, steps = STEPS, seed = 0 }, { contextLength }) {
    const longest = contextLength - ROOM
    if (lengths?.length === 0) throw new KvasirError('INVALID_ARGUMENT', 'at least one length is needed')
    const settings = { lengths: lengths ?? LENGTHS.filter((l) => l <= longest), limit, steps, seed }
    for (const length of settings.lengths) checkWhole('length', length, 128, longest)
    checkWhole('limit', limit, 1, 10_000)
    checkWhole('steps', steps, 1, ROOM / 2)
    const known = tasks ? tasksNamed(tasks) : TASKS.filter((t) => t.family === 'house')
    return { ...settings, tasks: known.map((t) => t.name) }
  },

  rows: ({ lengths }) => Math.max(...lengths) + ROOM,

  async measure(subject, settings, { signal, onProgress }) {
    const total = settings.limit * (settings.lengths.length + settings.tasks.length)
    let done = 0
    const step = () => {
      onProgress?.(++done, total)
    }
    const heads = rankHeads(await headScores(subject, settings, step, signal))
    return { policy: 'compresskv', heads, layerShares: await layerShares(subject, settings, heads, step, signal) }
  },
}

/** Mean over the answers that count, [layer][head]. @throws KvasirError INVALID_ARGUMENT when none does */
export async function headScores(
  subject: Subject,
  { lengths, limit, seed }: CompressKvSettings,
  step: () => void,
  signal?: AbortSignal,
): Promise<Float64Array[]> {
  const { layers, heads } = subject.model.config
  const sums = Array.from({ length: layers }, () => new Float64Array(heads))
  let counted = 0
  for (const length of lengths)
    for (let i = 0; i < limit; i++) {
      const depth = limit === 1 ? 0.5 : i / (limit - 1)
      const prompt = needlePrompt(subject.model.tokenizer, seed * limit + i, length, depth)
      const scores = await needleScores(subject, prompt, signal)
      if (scores) counted++
      for (const [layer, list] of scores?.entries() ?? []) for (let h = 0; h < heads; h++) sums[layer]![h]! += list[h]!
      step()
    }
  if (counted > 0) return sums.map((layer) => layer.map((sum) => sum / counted))
  throw new KvasirError(
    'INVALID_ARGUMENT',
    `${subject.model.config.name} repeated the needle in none of ${limit * lengths.length} answers: heads that copy cannot be told ` +
      'from others. Try shorter texts, or use a policy that needs no calibration, e.g. snapkv',
  )
}

/** Of each task's errors each layer's share, mean over the tasks: [Lyr], of sum 1. */
async function layerShares(
  subject: Subject,
  { lengths, limit, tasks, steps, seed }: CompressKvSettings,
  heads: readonly (readonly number[])[],
  step: () => void,
  signal?: AbortSignal,
): Promise<number[]> {
  const shares = new Float64Array(subject.model.config.layers)
  for (const task of tasksNamed(tasks)) {
    const errors = new Float64Array(shares.length)
    for (let i = 0; i < limit; i++) {
      const prompt = taskPrompt(subject.model.tokenizer, task, seed * limit + i, lengths[i % lengths.length]!)
      const own = await layerErrors(subject, prompt, heads, steps, signal)
      for (const [layer, error] of own.entries()) errors[layer]! += error
      step()
    }
    for (const [layer, share] of normalized(errors).entries()) shares[layer]! += share
  }
  return [...normalized(shares)]
}

/** Without any error all shares are the same. */
function normalized(list: Float64Array): Float64Array {
  const sum = list.reduce((a, b) => a + b, 0)
  return list.map((x) => (sum > 0 ? x / sum : 1 / list.length))
}
