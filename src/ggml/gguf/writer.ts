/**
 * Writes GGUF files, version 3. The header needs only names, types and shapes, so tensor data are asked for one tensor
 * at a time and a model never has to fit in memory. The file appears under its name when it is complete and on disk.
 */
import { randomUUID } from 'node:crypto'
import { closeSync, fsyncSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { KvasirError } from '../../contract/errors.ts'
import { GGML_TYPES, type GgmlType } from '../types.ts'
import { ByteSink, encodeValue, utf8 } from './encode.ts'
import { fileError } from './files.ts'
import { DEFAULT_ALIGNMENT, type GgufValue, LIMITS, MAGIC, MAX_DIMS, padTo, quote } from './format.ts'
import { type Complain, checkAlignment, checkKey, checkShape, checkTensorName } from './rules.ts'
import { splitPath } from './split.ts'
import { i32, u16, u32 } from './values.ts'

export interface GgufTensorSource {
  readonly name: string
  readonly type: GgmlType
  /** 1 to 4 dimensions, fastest first. */
  readonly ne: readonly number[]
  /** The data as stored. A function is called once, when they are to be written. */
  readonly data: Uint8Array | (() => Uint8Array)
}

export interface GgufWriteOptions {
  readonly metadata: Iterable<readonly [key: string, value: GgufValue]>
  readonly tensors: Iterable<GgufTensorSource>
  /** A power of two, at least 8; default 32. Stored as `general.alignment` when it is another. */
  readonly alignment?: number
  /** More tensors than this are written as a split model, `NAME-00001-of-0000N.gguf`. */
  readonly splitMaxTensors?: number
}

type Planned = { readonly source: GgufTensorSource; readonly name: Buffer; readonly bytes: number }
type Keys = readonly (readonly [string, GgufValue])[]

/**
 * @returns the paths written: `path`, or the parts in order
 * @throws KvasirError INVALID_ARGUMENT for what could not be read back, GGUF_IO; also whatever a `data` function throws.
 *   Nothing half-written is left behind,
 *   and a model that was there before stays as it was
 */
export function writeGguf(path: string, options: GgufWriteOptions): readonly string[] {
  const complain: Complain = (field, text) =>
    new KvasirError('INVALID_ARGUMENT', `${path}: ${field} ${text}`, { file: path, field })
  const metadata = [...options.metadata]
  const alignment = chooseAlignment(metadata, options.alignment, complain)
  const tensors = planTensors(options.tensors, complain)
  const most = options.splitMaxTensors ?? Math.max(1, tensors.length)
  if (!Number.isInteger(most) || most < 1)
    throw complain('splitMaxTensors', `is ${most}, must be a whole number from 1`)
  const count = Math.max(1, Math.ceil(tensors.length / most))
  if (count > LIMITS.splits)
    throw complain('splitMaxTensors', `is ${most}, which makes more than ${LIMITS.splits} parts`)

  const own: Keys = alignment === DEFAULT_ALIGNMENT ? [] : [['general.alignment', u32(alignment)]]
  if (count === 1) {
    writeParts(
      [{ path, header: encodeHeader([...own, ...metadata], tensors, alignment, complain), tensors }],
      alignment,
    )
    return [path]
  }
  const prefix = basename(path).replace(/\.gguf$/, '')
  const parts = Array.from({ length: count }, (_, no) => {
    const some = tensors.slice(no * most, (no + 1) * most)
    const split: Keys = [
      ['split.no', u16(no)],
      ['split.count', u16(count)],
      ['split.tensors.count', i32(tensors.length)],
    ]
    const keys = [...own, ...(no === 0 ? metadata : []), ...split]
    const header = encodeHeader(keys, some, alignment, complain)
    return { path: splitPath(path, prefix, no, count), header, tensors: some }
  })
  writeParts(parts, alignment)
  return parts.map((p) => p.path)
}

/** Takes `general.alignment` out of the keys: it is written first, and in each part. */
function chooseAlignment(metadata: (readonly [string, GgufValue])[], asked: number | undefined, complain: Complain) {
  const at = metadata.findIndex(([key]) => key === 'general.alignment')
  const given = at < 0 ? undefined : metadata.splice(at, 1)[0]![1]
  if (given && given.type !== 'u32') throw complain('key "general.alignment"', `is of type ${given.type}, must be u32`)
  if (given && asked !== undefined && given.value !== asked)
    throw complain('alignment', `is ${asked}, but key "general.alignment" says ${given.value}`)
  const alignment = asked ?? (given ? (given.value as number) : DEFAULT_ALIGNMENT)
  checkAlignment(alignment, 'alignment', complain)
  return alignment
}

function planTensors(sources: Iterable<GgufTensorSource>, complain: Complain): Planned[] {
  const planned: Planned[] = []
  const names = new Set<string>()
  for (const source of sources) {
    const label = `tensor ${quote(String(source.name))}`
    const name = utf8(source.name, (text) => complain(`${label} name`, text))
    checkTensorName(source.name, name.length, `${label} name`, complain)
    if (names.has(source.name)) throw complain(`${label} name`, 'is there twice: names must be unique')
    names.add(source.name)
    if (!Object.hasOwn(GGML_TYPES, source.type))
      throw complain(`${label} type`, `is ${quote(String(source.type))}, unknown`)
    const nDims = source.ne.length
    if (nDims < 1 || nDims > MAX_DIMS)
      throw complain(`${label} dimension count`, `is ${nDims}, must be 1 to ${MAX_DIMS}`)
    const bytes = checkShape(source.type, source.ne, label, complain)
    if (typeof source.data !== 'function') checkData(source, source.data, bytes, complain)
    planned.push({ source, name, bytes })
  }
  if (planned.length > LIMITS.tensors) throw complain('tensor count', `is ${planned.length}, at most ${LIMITS.tensors}`)
  return planned
}

function checkData(source: GgufTensorSource, data: Uint8Array, bytes: number, complain: Complain): void {
  const field = `tensor ${quote(source.name)} data`
  if (!(data instanceof Uint8Array)) throw complain(field, 'must be a Uint8Array')
  if (data.length !== bytes)
    throw complain(field, `are ${data.length} bytes, must be ${bytes} for ${source.type} [${source.ne.join(', ')}]`)
}

function encodeHeader(keys: Keys, tensors: readonly Planned[], alignment: number, complain: Complain): Buffer {
  const sink = new ByteSink()
  sink.raw(Buffer.from(MAGIC))
  sink.u32(3)
  sink.u64(tensors.length)
  sink.u64(keys.length)
  if (keys.length > LIMITS.keys) throw complain('key count', `is ${keys.length}, at most ${LIMITS.keys}`)
  const seen = new Set<string>()
  for (const [key, value] of keys) {
    const field = `key ${quote(String(key))}`
    const bytes = utf8(key, (text) => complain(field, text))
    checkKey(key, bytes.length, field, complain)
    if (seen.has(key)) throw complain(field, 'is there twice (split.* and general.alignment are written by themselves)')
    seen.add(key)
    sink.string(bytes)
    encodeValue(sink, value, (text) => complain(field, text))
  }
  let offset = 0
  for (const { source, name, bytes } of tensors) {
    sink.string(name)
    sink.u32(source.ne.length)
    for (const n of source.ne) sink.u64(n)
    sink.u32(GGML_TYPES[source.type].id)
    sink.u64(offset)
    offset += padTo(bytes, alignment)
  }
  if (!Number.isSafeInteger(offset)) throw complain('tensor data', 'are more than 2^53 bytes')
  if (sink.size > LIMITS.headerBytes) throw complain('header', `is ${sink.size} bytes, at most ${LIMITS.headerBytes}`)
  return Buffer.from(sink.bytes)
}

interface PartPlan {
  readonly path: string
  readonly header: Buffer
  readonly tensors: readonly Planned[]
}

/** All parts under temporary names first, so that a failure leaves nothing that looks like a model. */
function writeParts(parts: readonly PartPlan[], alignment: number): void {
  const temporary = parts.map((p) => join(dirname(p.path), `.${randomUUID()}.tmp`))
  let started = 0
  try {
    for (const part of parts) writePart(temporary[started++]!, part, alignment)
    // the first part last: who finds it finds them all
    for (let i = parts.length - 1; i >= 0; i--) rename(temporary[i]!, parts[i]!.path)
  } catch (error) {
    for (const file of temporary.slice(0, started)) rmSync(file, { force: true })
    throw error
  }
  syncFolder(dirname(parts[0]!.path))
}

function writePart(temporary: string, part: PartPlan, alignment: number): void {
  const attempt = <T>(act: () => T): T => {
    try {
      return act()
    } catch (error) {
      throw fileError(error, part.path, 'write')
    }
  }
  const fd = attempt(() => openSync(temporary, 'wx'))
  try {
    attempt(() => writeAll(fd, part.header, 0))
    let at = padTo(part.header.length, alignment)
    for (const { source, bytes } of part.tensors) {
      const complain: Complain = (field, text) =>
        new KvasirError('INVALID_ARGUMENT', `${part.path}: ${field} ${text}`, { file: part.path, field })
      const data = typeof source.data === 'function' ? source.data() : source.data
      checkData(source, data, bytes, complain)
      attempt(() => writeAll(fd, data, at))
      at += padTo(bytes, alignment)
    }
    // the gaps are zero by themselves; ggml wants the padding behind the last tensor too
    attempt(() => ftruncateSync(fd, at))
    attempt(() => fsyncSync(fd))
  } finally {
    closeSync(fd)
  }
}

function writeAll(fd: number, bytes: Uint8Array, at: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, at + done)
}

function rename(from: string, to: string): void {
  try {
    renameSync(from, to)
  } catch (error) {
    throw fileError(error, to, 'write')
  }
}

/** Makes the new names last through a power cut, where the system lets folders be synced (Windows does not). */
function syncFolder(folder: string): void {
  try {
    const fd = openSync(folder, 'r')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  } catch {
    // the files themselves are on disk
  }
}
