/**
 * The rules that reader and writer share. Each is given the field's name and a way to make the error, because a broken
 * rule is GGUF_INVALID in a file and INVALID_ARGUMENT in a call.
 */
import type { KvasirError } from '../../contract/errors.ts'
import { GGML_TYPES, type GgmlType, rowBytes } from '../types.ts'
import { MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, type Shape } from './format.ts'

/** Makes the error "FILE: FIELD TEXT". */
export type Complain = (field: string, text: string) => KvasirError

/** @param bytes of the key in UTF-8 */
export function checkKey(key: string, bytes: number, field: string, complain: Complain): void {
  if (bytes < 1 || bytes > MAX_KEY_BYTES) throw complain(field, `has ${bytes} bytes, must have 1 to ${MAX_KEY_BYTES}`)
  if (key.includes('\0')) throw complain(field, 'holds a NUL character, which no C reader can look up')
}

/** @param bytes of the name in UTF-8 */
export function checkTensorName(name: string, bytes: number, field: string, complain: Complain): void {
  if (bytes < 1 || bytes > MAX_TENSOR_NAME_BYTES)
    throw complain(field, `has ${bytes} bytes, must have 1 to ${MAX_TENSOR_NAME_BYTES} (ggml's limit)`)
  if (name.includes('\0')) throw complain(field, 'holds a NUL character: ggml would cut the name there')
}

/** A multiple of 8 by the specification, a power of two for ggml. */
export function checkAlignment(value: number, field: string, complain: Complain): void {
  if (!Number.isInteger(value) || value < 8 || value > 2 ** 31 || 2 ** Math.round(Math.log2(value)) !== value)
    throw complain(field, `is ${value}, must be a power of two, at least 8`)
}

/**
 * Bytes of a tensor's data.
 * @param dims as listed in the file, fastest first, each already a safe integer
 * @param label names the tensor, e.g. `tensor "output.weight"`
 */
export function checkShape(type: GgmlType, dims: readonly number[], label: string, complain: Complain): number {
  let elements = 1
  for (const [i, n] of dims.entries()) {
    if (!Number.isSafeInteger(n) || n < 1) throw complain(`${label} dimension ${i}`, `is ${n}, must be at least 1`)
    elements *= n
    if (!Number.isSafeInteger(elements)) throw tooLarge(label, dims, complain)
  }
  const { block } = GGML_TYPES[type]
  const row = dims[0]!
  if (row % block !== 0)
    throw complain(`${label} dimension 0`, `is ${row}, must be a multiple of ${block}, the block of ${type}`)
  const bytes = rowBytes(type, row) * (elements / row)
  if (!Number.isSafeInteger(bytes)) throw tooLarge(label, dims, complain)
  return bytes
}

function tooLarge(label: string, dims: readonly number[], complain: Complain): KvasirError {
  return complain(`${label} shape`, `is [${dims.join(', ')}], more than 2^53 elements or bytes`)
}

/** Pads dimensions to four. */
export function shapeOf(dims: readonly number[]): Shape {
  return [dims[0]!, dims[1] ?? 1, dims[2] ?? 1, dims[3] ?? 1]
}
