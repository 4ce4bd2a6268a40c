/** The tensor infos of a header, and where the data they promise lie. */
import { type GgmlType, typeFromId } from '../types.ts'
import type { Cursor } from './cursor.ts'
import { type GgufTensor, MAX_DIMS, quote } from './format.ts'
import { type Complain, checkShape, checkTensorName, shapeOf } from './rules.ts'

/** Types that ggml once had; files with them cannot be read any more. */
const REMOVED_TYPES: Readonly<Record<number, string>> = {
  4: 'Q4_2',
  5: 'Q4_3',
  31: 'Q4_0_4_4',
  32: 'Q4_0_4_8',
  33: 'Q4_0_8_8',
  36: 'IQ4_NL_4_4',
  37: 'IQ4_NL_4_8',
  38: 'IQ4_NL_8_8',
}

/** A tensor info as the file has it; its offset counts from the start of the data, which is not known yet. */
export type TensorInfo = Omit<GgufTensor, 'part' | 'offset'> & { readonly relative: number }

export function readTensorInfos(cursor: Cursor, count: number, alignment: number, complain: Complain): TensorInfo[] {
  const infos: TensorInfo[] = []
  const names = new Set<string>()
  for (let i = 0; i < count; i++) {
    cursor.label = `tensor ${i} name`
    const name = cursor.name()
    checkTensorName(name, Buffer.byteLength(name), cursor.label, complain)
    if (names.has(name)) throw cursor.invalid(`is ${quote(name)} again: names must be unique`)
    names.add(name)
    infos.push(readTensorInfo(cursor, name, alignment, complain))
  }
  return infos
}

function readTensorInfo(cursor: Cursor, name: string, alignment: number, complain: Complain): TensorInfo {
  const label = `tensor ${quote(name)}`
  cursor.label = `${label} dimension count`
  const nDims = cursor.u32()
  if (nDims < 1 || nDims > MAX_DIMS) throw cursor.invalid(`is ${nDims}, must be 1 to ${MAX_DIMS}`)
  const dims: number[] = []
  for (let d = 0; d < nDims; d++) {
    cursor.label = `${label} dimension ${d}`
    const n = cursor.u64()
    if (typeof n === 'bigint' || n < 1) throw cursor.invalid(`is ${n}, must be 1 to 2^53`)
    dims.push(n)
  }
  cursor.label = `${label} type`
  const type = readTensorType(cursor)
  const bytes = checkShape(type, dims, label, complain)
  cursor.label = `${label} offset`
  const relative = cursor.u64()
  if (typeof relative === 'bigint') throw cursor.invalid(`is ${relative}, past any file`)
  if (relative % alignment !== 0)
    throw cursor.invalid(`is ${relative}, must be a multiple of the alignment, ${alignment}`)
  return { name, type, ne: shapeOf(dims), nDims, bytes, relative }
}

function readTensorType(cursor: Cursor): GgmlType {
  const id = cursor.u32()
  const type = typeFromId(id)
  if (type) return type
  const removed = REMOVED_TYPES[id]
  throw cursor.invalid(
    removed
      ? `is ${id} (${removed}), which ggml has removed; quantize the original model again, to Q4_0 or IQ4_NL`
      : `is ${id}, which is no tensor type of ggml 0.23; the file is damaged, or made for a newer ggml`,
  )
}

/** No two tensors share a byte, and the last one ends inside the file. */
export function checkRanges(tensors: GgufTensor[], dataOffset: number, size: number, complain: Complain): void {
  if (tensors.length === 0) return
  if (dataOffset > size)
    throw complain(
      'tensor data',
      `begin at byte ${dataOffset}, but the file ends at byte ${size}; ${incomplete(size, dataOffset)}`,
    )
  tensors.sort((a, b) => a.offset - b.offset)
  const last = tensors.at(-1)!
  // the sum may pass 2^53 only when it passes the file's size too, and then nothing depends on its last digit
  const need = last.offset + last.bytes
  if (need > size)
    throw complain(
      `tensor ${quote(last.name)} data`,
      `are bytes ${last.offset} to ${need}, but the file ends at byte ${size}; ${incomplete(size, need)}`,
    )
  for (let i = 1; i < tensors.length; i++) {
    const [a, b] = [tensors[i - 1]!, tensors[i]!]
    if (a.offset + a.bytes > b.offset)
      throw complain(
        `tensor ${quote(b.name)} offset`,
        `puts its data at byte ${b.offset}, inside those of ${quote(a.name)}, bytes ${a.offset} to ${a.offset + a.bytes}`,
      )
  }
}

function incomplete(size: number, need: number): string {
  return `the download is incomplete: ${size} of at least ${need} bytes; pull it again`
}
