/**
 * Split models: files `NAME-00001-of-00003.gguf` and so on, counted from 1 in names and from 0 in `split.no`. The first
 * holds the model's keys, all hold tensors.
 */
import { basename, dirname, join } from 'node:path'
import { KvasirError } from '../../contract/errors.ts'
import { type GgufFile, type GgufPart, LIMITS, quote } from './format.ts'

const PATTERN = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s

export interface SplitName {
  readonly prefix: string
  /** From 0. */
  readonly no: number
  readonly count: number
}

/** Undefined when the file is not named as a part. */
export function splitName(path: string): SplitName | undefined {
  const match = PATTERN.exec(basename(path))
  if (!match) return undefined
  return { prefix: match[1]!, no: Number(match[2]) - 1, count: Number(match[3]) }
}

/** Path of part `no` (from 0), in the folder of `near`. */
export function splitPath(near: string, prefix: string, no: number, count: number): string {
  const five = (n: number) => String(n).padStart(5, '0')
  return join(dirname(near), `${prefix}-${five(no + 1)}-of-${five(count)}.gguf`)
}

/** 1 for a whole file: a file merged from parts says 0 or 1. */
export function splitCount(file: GgufFile): number {
  return file.metadata.has('split.count') ? splitNumber(file, 'split.count') : 1
}

/** A `split.*` key: any integer type. Files of `gguf-split` have u16 and i32. */
function splitNumber(file: GgufFile, key: string): number {
  const found = file.metadata.raw(key)
  const most = key === 'split.tensors.count' ? LIMITS.tensors : LIMITS.splits
  const value = found && /^[ui]\d/.test(found.type) ? found.value : undefined
  if (typeof value === 'number' && value >= 0 && value <= most) return value
  const got = !found
    ? 'is missing'
    : found.type === 'array'
      ? 'is an array'
      : `is ${found.type} ${quote(String(found.value))}`
  throw splitError(file.path, key, `${got}, must be an integer from 0 to ${most}`)
}

function splitError(file: string, key: string, text: string): KvasirError {
  const field = `key ${quote(key)}`
  return new KvasirError('GGUF_INVALID', `${file}: ${field} ${text}`, { file, field })
}

/** Reads the part at `path`, which is the `no`-th (from 0). */
type ReadPart = (path: string, no: number) => GgufFile

/** Reads the other parts of a model whose first part is `first`. */
export function mergeParts(first: GgufFile, count: number, read: ReadPart): GgufFile {
  const { path } = first
  const named = splitName(path)
  const no = splitNumber(first, 'split.no')
  if (!named)
    throw splitError(
      path,
      'split.count',
      `is ${count}: this is part ${no + 1} of a split model, but the file was renamed, so the others cannot be found. ` +
        `Give all parts their names back: NAME-00001-of-${String(count).padStart(5, '0')}.gguf and so on`,
    )
  if (named.count !== count)
    throw splitError(path, 'split.count', `is ${count}, but the file is named as one of ${named.count}`)
  if (named.no !== no)
    throw splitError(
      path,
      'split.no',
      `is ${no}, but the file is named as part ${named.no + 1}, which is split.no ${named.no}`,
    )
  if (no !== 0)
    throw splitError(
      path,
      'split.no',
      `is ${no}: this is part ${no + 1} of ${count}; open the first: ${basename(splitPath(path, named.prefix, 0, count))}`,
    )

  const tensors = new Map(first.tensors)
  const parts: GgufPart[] = [...first.parts]
  const expected = splitNumber(first, 'split.tensors.count')
  for (let i = 1; i < count; i++) {
    const part = readPart(splitPath(path, named.prefix, i, count), i, count, read)
    for (const [name, tensor] of part.tensors) {
      const other = tensors.get(name)
      if (other) {
        const field = `tensor ${quote(name)}`
        const text = `is in ${basename(parts[other.part]!.path)} too: names must be unique over all parts`
        throw new KvasirError('GGUF_INVALID', `${part.path}: ${field} ${text}`, { file: part.path, field })
      }
      tensors.set(name, tensor)
    }
    checkTotal(first, tensors.size, expected, i === count - 1)
    parts.push(...part.parts)
  }
  return { ...first, tensors, parts, totalBytes: parts.reduce((sum, p) => sum + p.size, 0) }
}

/** Checked after each part, so that parts without end cannot fill the memory. */
function checkTotal(first: GgufFile, got: number, expected: number, complete: boolean): void {
  if (got > expected || (complete && got < expected))
    throw splitError(
      first.path,
      'split.tensors.count',
      `is ${expected}, but the parts hold ${complete ? got : `at least ${got}`} tensors; they may be of different models`,
    )
}

function readPart(path: string, no: number, count: number, read: ReadPart): GgufFile {
  let part: GgufFile
  try {
    part = read(path, no)
  } catch (error) {
    if (error instanceof KvasirError && error.code === 'MODEL_NOT_FOUND')
      throw new KvasirError(
        'MODEL_NOT_FOUND',
        `${path}: part ${no + 1} of ${count} is missing; all parts must be in one folder: pull it again`,
        { file: path },
        error,
      )
    throw error
  }
  const got = { no: splitNumber(part, 'split.no'), count: splitNumber(part, 'split.count') }
  if (got.no !== no)
    throw splitError(path, 'split.no', `is ${got.no}, must be ${no}: the file was given another part's name`)
  if (got.count !== count) throw splitError(path, 'split.count', `is ${got.count}, but the first part says ${count}`)
  return part
}
