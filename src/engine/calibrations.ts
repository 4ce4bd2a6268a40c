/**
 * Files of what `kvasir calibrate` measured of a model: JSON, one file per policy, bound to the model by its digest. This is
 * where they lie, how they are read, and every check before a policy trusts one.
 */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Calibration } from '../contract/calibration.ts'
import { KvasirError } from '../contract/errors.ts'
import { cacheFolder } from '../folders.ts'
import type { Model } from '../model/model.ts'
import { modelDigest } from './describe.ts'

export type CalibratedPolicy = Calibration['policy']

const VERSION = 1

/** Whose heads and layers the numbers are of. */
export interface CalibratedModel {
  /** As in the names of cached blocks. */
  readonly digest: string
  readonly name: string
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
}

export interface CalibrationFile {
  readonly kvasir: 'calibration'
  readonly version: typeof VERSION
  readonly model: CalibratedModel
  /** Settings of the measurement, to repeat it. */
  readonly made: object
  readonly calibration: Calibration
}

export async function describeCalibrated(model: Model): Promise<CalibratedModel> {
  const { name, layers, heads, kvHeads } = model.config
  return { digest: await modelDigest(model), name, layers, heads, kvHeads }
}

/** Puts a calibration into the form of its file. */
export function calibrationFile(model: CalibratedModel, made: object, calibration: Calibration): CalibrationFile {
  return { kvasir: 'calibration', version: VERSION, model, made, calibration }
}

/**
 * The calibration of a policy for a model: of the file that was given, else of the one beside the model, else of the one in
 * the cache folder; null: there is none. Files beside the model that are of another model are passed over, since several
 * models can share a folder; one that was given must be of this.
 * @param path of the model's file
 * @param given a calibration file that the user named
 * @throws KvasirError INVALID_ARGUMENT for a file that is damaged, or given and of another model or policy
 */
export async function findCalibration(
  policy: CalibratedPolicy,
  model: Model,
  path: string,
  given: string | null = null,
): Promise<Calibration | null> {
  const wanted = await describeCalibrated(model)
  if (given !== null) {
    const file = readCalibration(given)
    checkIsOf(file, policy, wanted, given)
    return file.calibration
  }
  for (const place of calibrationPlaces(policy, wanted.digest, path)) {
    if (!existsSync(place)) continue
    const file = readCalibration(place)
    if (file.model.digest !== wanted.digest) continue
    checkIsOf(file, policy, wanted, place)
    return file.calibration
  }
  return null
}

/** Where a calibration is looked for, in this order: beside the model's file, and in the cache folder. */
export function calibrationPlaces(
  policy: CalibratedPolicy,
  digest: string,
  path: string,
  env = process.env,
): readonly [beside: string, cached: string] {
  // A split model has several digests, which together are too long for a name.
  const name = digest.includes('+') ? createHash('sha256').update(digest).digest('hex') : digest
  return [
    join(dirname(path), 'calibration', `${policy}.json`),
    join(cacheFolder(env), 'calibration', `${name}-${policy}.json`),
  ]
}

/** @throws KvasirError INVALID_ARGUMENT when it cannot be written */
export function writeCalibration(path: string, file: CalibrationFile): void {
  try {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, `${showJson(file)}\n`)
  } catch (cause) {
    throw invalid(path, `could not be written: ${(cause as Error).message}`, cause)
  }
}

/** Indented, with lists of numbers on one line. */
function showJson(value: object): string {
  const inLine = (list: string) => list.replace(/\s+/g, ' ').replace('[ ', '[').replace(' ]', ']')
  return JSON.stringify(value, null, 2).replace(/\[[^[\]{}"]*\]/g, inLine)
}

/** @throws KvasirError INVALID_ARGUMENT for what is no calibration file of this version, whole and consistent */
export function readCalibration(path: string): CalibrationFile {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw invalid(path, `could not be read: ${(cause as Error).message}`, cause)
  }
  return parseCalibration(text, path)
}

/** @param path for messages */
export function parseCalibration(text: string, path: string): CalibrationFile {
  let data: unknown
  try {
    data = JSON.parse(text)
  } catch (cause) {
    throw invalid(path, `is not JSON: ${(cause as Error).message}`, cause)
  }
  if (!isObject(data) || data['kvasir'] !== 'calibration') throw invalid(path, 'is no calibration file')
  if (data['version'] !== VERSION)
    throw invalid(path, `is of version ${String(data['version'])}; this Kvasir reads version ${VERSION}`)
  const { model, calibration, made } = data
  if (!isModel(model))
    throw invalid(path, '"model" must have a digest, a name, and numbers of layers, heads and KV heads')
  if (!isObject(made)) throw invalid(path, '"made" must be an object')
  const wrong = isObject(calibration) ? wrongWith(calibration, model) : '"calibration" must be an object'
  if (wrong !== null) throw invalid(path, wrong)
  return data as unknown as CalibrationFile
}

function checkIsOf(
  { model, calibration }: CalibrationFile,
  policy: string,
  wanted: CalibratedModel,
  path: string,
): void {
  if (calibration.policy !== policy) throw invalid(path, `is for ${calibration.policy}, and ${policy} was asked for`)
  if (model.digest !== wanted.digest) throw invalid(path, `is of another model: ${model.name}, not ${wanted.name}`)
  const { layers, heads, kvHeads } = wanted
  if (model.layers !== layers || model.heads !== heads || model.kvHeads !== kvHeads)
    throw invalid(path, `says that ${wanted.name} has other numbers of layers and heads than it has`)
}

// shapes ---------------------------------------------------------------------------------------------------------------

type Fields = Readonly<Record<string, unknown>>
/** What is wrong with a value, as the end of a sentence; null: nothing. */
type Check = (value: unknown, model: CalibratedModel) => string | null

const SHAPES: { readonly [P in CalibratedPolicy]: Readonly<Record<string, Check>> } = {
  compresskv: {
    heads: (value, { layers, heads }) =>
      isTable(value, layers, heads) && value.every((row) => isPermutation(row))
        ? null
        : `must list the ${heads} query heads of each of ${layers} layers, each once`,
    layerShares: (value, { layers }) =>
      isNumbers(value, layers, 0, 1) && Math.abs(value.reduce((a, b) => a + b, 0) - 1) < 1e-6
        ? null
        : `must be ${layers} shares that add up to 1`,
  },
  razorattention: { echo: perHead(0, 1), induction: perHead(0, 1) },
  uncomp: {
    layerEntropies: (value, { layers }) =>
      isNumbers(value, layers, 0, Number.MAX_VALUE) ? null : `must be ${layers} numbers from 0 up`,
    headVotes: perHead(0, 1),
  },
}

function perHead(min: number, max: number): Check {
  return (value, { layers, kvHeads }) =>
    isTable(value, layers, kvHeads) && value.every((row) => isNumbers(row, kvHeads, min, max))
      ? null
      : `must be ${layers} layers of ${kvHeads} numbers from ${min} to ${max}, one per KV head`
}

function wrongWith(calibration: Fields, model: CalibratedModel): string | null {
  const { policy } = calibration
  if (typeof policy !== 'string' || !Object.hasOwn(SHAPES, policy))
    return `is for "${String(policy)}"; known are ${Object.keys(SHAPES).join(', ')}`
  for (const [field, check] of Object.entries(SHAPES[policy as CalibratedPolicy])) {
    const wrong = check(calibration[field], model)
    if (wrong !== null) return `"${field}" ${wrong}`
  }
  return null
}

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isModel(value: unknown): value is CalibratedModel {
  const count = (n: unknown) => Number.isSafeInteger(n) && (n as number) >= 1
  return (
    isObject(value) &&
    typeof value['digest'] === 'string' &&
    typeof value['name'] === 'string' &&
    [value['layers'], value['heads'], value['kvHeads']].every(count)
  )
}

function isNumbers(value: unknown, length: number, min: number, max: number): value is number[] {
  return (
    Array.isArray(value) && value.length === length && value.every((x) => typeof x === 'number' && x >= min && x <= max)
  )
}

function isTable(value: unknown, rows: number, columns: number): value is unknown[][] {
  return (
    Array.isArray(value) && value.length === rows && value.every((row) => Array.isArray(row) && row.length === columns)
  )
}

function isPermutation(row: readonly unknown[]): boolean {
  return (
    new Set(row).size === row.length &&
    row.every((x) => Number.isInteger(x) && (x as number) >= 0 && (x as number) < row.length)
  )
}

function invalid(path: string, what: string, cause?: unknown): KvasirError {
  const mend = 'Make it anew with `kvasir calibrate`'
  return new KvasirError('INVALID_ARGUMENT', `calibration ${path} ${what}. ${mend}`, { file: path }, cause)
}
