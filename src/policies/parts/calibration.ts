/** What was measured of the model at hand, for a policy that cannot do without. */
import { KvasirError } from '../../contract/errors.ts'
import type { Calibration, ModelDims, PromptAhead } from '../../contract/policy.ts'

type Of<P extends Calibration['policy']> = Extract<Calibration, { readonly policy: P }>

/** @throws KvasirError INVALID_ARGUMENT where there is none for this policy and a model of this size */
export function calibrationOf<P extends Calibration['policy']>(
  { calibration, model }: Pick<PromptAhead, 'calibration' | 'model'>,
  policy: P,
): Of<P> {
  if (calibration?.policy === policy && fits(calibration, model)) return calibration as Of<P>
  throw new KvasirError(
    'INVALID_ARGUMENT',
    `${calibration ? 'the calibration is not one of this model and policy' : 'this needs a calibration of the model'}: make it with ` +
      `\`kvasir calibrate ${policy} MODEL\``,
    { policy },
  )
}

function fits(c: Calibration, { layers, heads, kvHeads }: ModelDims): boolean {
  const perHead = (table: readonly (readonly number[])[]) =>
    table.length === layers && table.every((row) => row.length === kvHeads && row.every(Number.isFinite))
  switch (c.policy) {
    case 'compresskv':
      return (
        c.layerShares.length === layers &&
        c.heads.length === layers &&
        c.heads.flat().every((h) => Number.isInteger(h) && h >= 0 && h < heads)
      )
    case 'razorattention':
      return perHead(c.echo) && perHead(c.induction)
    case 'uncomp':
      return c.layerEntropies.length === layers && perHead(c.headVotes)
    default:
      return c satisfies never
  }
}
