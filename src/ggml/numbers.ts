/** Conversions between f32 and the other types, done by ggml itself so that every bit agrees with it. */
import koffi from 'koffi'
import { ShapeError } from '../contract/errors.ts'
import { ffi } from './library.ts'
import { canHoldFloats, GGML_TYPES, type GgmlType, rowBytes } from './types.ts'

/** Quantises rows of `rowLength` f32 numbers. Types that need an importance matrix are refused. */
export function fromFloats(type: GgmlType, data: Float32Array, rowLength: number): Uint8Array {
  const { id, block } = GGML_TYPES[type]
  if (!(rowLength > 0) || rowLength % block || data.length % rowLength)
    throw new ShapeError(`${data.length} numbers in rows of ${rowLength} do not fit ${type} blocks of ${block}`)
  const out = new Uint8Array(rowBytes(type, data.length))
  if (type === 'f32') out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  else if (type === 'f16') ffi.ggml_fp32_to_fp16_row(data, out, data.length)
  else if (type === 'bf16') ffi.ggml_fp32_to_bf16_row(data, out, data.length)
  else if (!canHoldFloats(type)) throw new ShapeError(`f32 cannot be converted to ${type} here`)
  else ffi.ggml_quantize_chunk(id, data, out, 0, data.length / rowLength, rowLength, null)
  return out
}

/** `struct ggml_type_traits`: offset of `to_float`. */
const TO_FLOAT_OFFSET = 40
const toFloat = koffi.proto('void kvasir_to_float(void*, void*, int64_t)')

/** The f32 numbers that `data` stands for. */
export function toFloats(type: GgmlType, data: Uint8Array, elements: number): Float32Array {
  const { id, block } = GGML_TYPES[type]
  if (!(elements >= 0) || elements % block || data.byteLength < rowBytes(type, elements))
    throw new ShapeError(`${data.byteLength} bytes do not hold ${elements} ${type} elements`)
  const out = new Float32Array(elements)
  if (type === 'f32') new Uint8Array(out.buffer).set(data.subarray(0, elements * 4))
  else if (type === 'f16') ffi.ggml_fp16_to_fp32_row(data, out, elements)
  else if (type === 'bf16') ffi.ggml_bf16_to_fp32_row(data, out, elements)
  else {
    const convert = koffi.decode(ffi.ggml_get_type_traits(id)!, TO_FLOAT_OFFSET, 'void*')
    if (convert === null) throw new ShapeError(`${type} cannot be converted to f32`)
    koffi.call(convert, toFloat, data, out, elements)
  }
  return out
}
