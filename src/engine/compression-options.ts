/** What a request says about its cache: which policy, how much it may keep, of which part of the prompt. */
import { type Arena, PAGE_CELLS } from '../cache/arena.ts'
import { KvasirError } from '../contract/errors.ts'
import type { Calibration, PolicyDefinition, PromptAhead } from '../contract/policy.ts'
import type { ModelConfig } from '../model/config.ts'
import { budgetRows, type ChosenPolicy, choosePolicy, parseBudget } from '../policies/index.ts'
import type { GenerateRequest } from './request.ts'

export interface CompressionOptions {
  readonly policy: ChosenPolicy
  /** Rows per layer and KV head on average; all of the prompt's where none was asked for. */
  readonly budget: number
  /** Whether the policy keeps to a budget. */
  readonly isBudgeted: boolean
  readonly seed: number
  /** Rows of the prompt that the policy shortens, from the first on. */
  readonly promptRows: number
  readonly ahead: PromptAhead
  /** Answers may go on beyond the context. */
  readonly isEndless: boolean
  /** Rows of the prompt between two plans; null: it is planned as a whole. */
  readonly chunkRows: number | null
  /** First layers of its stages; null: all layers in one go. */
  readonly stages: readonly number[] | null
}

/**
 * @param calibrationOf finds what was measured of the model; null: nothing was
 * @returns null when nothing is to be shortened
 * @throws KvasirError INVALID_ARGUMENT for an unknown policy, wrong options, a budget that is missing or wrong, or a calibration
 *   that is missing
 */
export async function chooseCompression(
  { policy, budget, compressAt, sampling }: GenerateRequest,
  prompt: Int32Array,
  { model, arena }: { readonly model: ModelConfig; readonly arena: Pick<Arena, 'blockBytes'> },
  calibrationOf: (policy: Calibration['policy']) => Promise<Calibration | null>,
): Promise<CompressionOptions | null> {
  const bad = (what: string, field = 'budget') => new KvasirError('INVALID_ARGUMENT', what, { field })
  if (policy === undefined) {
    if (budget !== undefined) throw bad('a budget needs a policy, e.g. snapkv, to choose what is kept')
    if (compressAt !== undefined) throw bad('compressAt needs a policy, e.g. snapkv', 'compressAt')
    return null
  }
  const promptRows = compressAt ?? prompt.length
  if (!(Number.isSafeInteger(promptRows) && promptRows >= 1 && promptRows <= prompt.length))
    throw bad(
      `compressAt is ${compressAt}; the prompt has ${prompt.length} tokens, of which it names 1 or more`,
      'compressAt',
    )
  const chosen = choosePolicy(policy)
  const { definition, options, text } = chosen
  if (definition.name === 'full') return null
  const isBudgeted = definition.takesBudget !== false
  if (!isBudgeted && budget !== undefined)
    throw bad(`the policy ${text} takes no budget: its options say how much the cache holds`)
  if (isBudgeted && budget === undefined)
    throw bad(`the policy ${text} needs a budget, e.g. 0.25 of the full cache, or 512 tokens`)
  const rowBytes = arena.blockBytes / PAGE_CELLS
  const rows = isBudgeted ? budgetRows(parseBudget(budget!), { model, promptRows, rowBytes }) : promptRows
  const needed = definition.calibration?.(options) ?? null
  const calibration = needed && (await calibrationOf(needed))
  if (needed && !calibration)
    throw bad(
      `the policy ${text} needs measurements of this model, and there are none: make them with \`kvasir calibrate ${needed} MODEL\``,
      'policy',
    )
  const ahead: PromptAhead = {
    ...{ model, rows: promptRows, budget: rows, contextLength: model.contextLength },
    ...(calibration ? { calibration } : {}),
  }
  const stages = definition.stages?.(ahead, options) ?? null
  const chunkRows = stages ? null : (definition.chunkRows?.(ahead, options) ?? null)
  checkReading(definition, stages, chunkRows, model.layers)
  return {
    ...{ policy: chosen, isBudgeted, budget: rows, seed: sampling?.seed ?? 0, promptRows, ahead, stages },
    isEndless: definition.isEndless?.(options) ?? false,
    chunkRows,
  }
}

/** What a policy says about how its prompt is read: others run in the same steps. @throws KvasirError INVALID_ARGUMENT */
function checkReading(
  { name, afterStage, afterChunk }: PolicyDefinition,
  stages: readonly number[] | null,
  chunkRows: number | null,
  layers: number,
): void {
  const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `policy '${name}': ${what}`, { field: 'policy' })
  if (stages) {
    const ascends = stages.every(
      (l, i) => Number.isInteger(l) && l < layers && (i === 0 ? l === 0 : l > stages[i - 1]!),
    )
    if (!ascends || stages.length === 0)
      throw bad(`stages [${stages}] must begin with layer 0 and ascend, below the model's ${layers} layers`)
    if (!afterStage) throw bad('stages need afterStage')
  }
  if (chunkRows === null) return
  if (!(Number.isSafeInteger(chunkRows) && chunkRows >= 1))
    throw bad(`chunks of ${chunkRows} rows; it must be 1 or more`)
  if (!afterChunk) throw bad('chunkRows need afterChunk')
}
