/** What all measurements have in common: settings, progress, and the file that comes of them. */

import type { Calibration } from '../../contract/calibration.ts'
import { KvasirError } from '../../contract/errors.ts'
import { type CalibrationFile, calibrationFile, describeCalibrated } from '../../engine/calibrations.ts'
import type { ModelConfig } from '../../model/config.ts'
import { Model } from '../../model/model.ts'
import { Subject, type SubjectOptions } from './subject.ts'

export interface Watch {
  readonly signal?: AbortSignal
  /** Of texts, or of rows. */
  readonly onProgress?: (done: number, of: number) => void
}

export interface Measurement<S extends object> {
  readonly policy: Calibration['policy']
  /** What its progress counts. */
  readonly unit: string
  /** All settings: those that were given, and defaults that fit the model. @throws KvasirError INVALID_ARGUMENT */
  readonly complete: (given: Partial<S>, config: ModelConfig) => S
  /** Rows of the longest text that is read. */
  readonly rows: (settings: S) => number
  readonly measure: (subject: Subject, settings: S, watch: Watch) => Promise<Calibration>
}

/** Measures a model. @throws KvasirError as loading does; INVALID_ARGUMENT for settings; ABORTED */
export async function calibrate<S extends object>(
  { complete, rows, measure }: Measurement<S>,
  path: string,
  given: Partial<S>,
  options: SubjectOptions & Watch,
): Promise<CalibrationFile> {
  const settings = complete(given, Model.describe(path).config)
  using subject = await Subject.load(path, rows(settings), options)
  const calibration = await measure(subject, settings, options)
  return calibrationFile(await describeCalibrated(subject.model), settings, calibration)
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkWhole(name: string, n: number, min: number, max: number): void {
  if (Number.isSafeInteger(n) && n >= min && n <= max) return
  throw new KvasirError('INVALID_ARGUMENT', `${name} is ${n}; it must be a whole number from ${min} to ${max}`)
}

/** Texts for measuring come from other seeds than those that `kvasir eval` asks by default, which count up from 0. */
export const FIRST_SEED = 1_000_000

export function argmax(x: ArrayLike<number>): number {
  let best = 0
  for (let i = 1; i < x.length; i++) if (x[i]! > x[best]!) best = i
  return best
}
