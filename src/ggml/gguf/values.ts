/** Short constructors for metadata values. Ranges are checked by the writer, which can name the key. */
import type { GgufArray, GgufNumberType, GgufScalar, GgufValue } from './format.ts'

type Scalar<T extends GgufScalar['type']> = Extract<GgufScalar, { type: T }>
type ArrayOf<T extends GgufArray['of']> = Extract<GgufArray, { of: T }>

function number<T extends Exclude<GgufNumberType, 'u64' | 'i64'>>(type: T) {
  return (value: number): GgufScalar => ({ type, value })
}

function array<T extends GgufNumberType>(of: T) {
  return (value: ArrayOf<T>['value']): GgufValue => ({ type: 'array', of, value }) as GgufArray
}

export const u8 = number('u8')
export const i8 = number('i8')
export const u16 = number('u16')
export const i16 = number('i16')
export const u32 = number('u32')
export const i32 = number('i32')
export const f32 = number('f32')
export const f64 = number('f64')
export const u64 = (value: number | bigint): Scalar<'u64'> => ({ type: 'u64', value }) as Scalar<'u64'>
export const i64 = (value: number | bigint): Scalar<'i64'> => ({ type: 'i64', value }) as Scalar<'i64'>
export const bool = (value: boolean): Scalar<'bool'> => ({ type: 'bool', value })
export const str = (value: string): Scalar<'string'> => ({ type: 'string', value })

export const u8s = array('u8')
export const i8s = array('i8')
export const u16s = array('u16')
export const i16s = array('i16')
export const u32s = array('u32')
export const i32s = array('i32')
export const u64s = array('u64')
export const i64s = array('i64')
export const f32s = array('f32')
export const f64s = array('f64')
export const bools = (value: readonly boolean[]): ArrayOf<'bool'> => ({
  type: 'array',
  of: 'bool',
  value: Uint8Array.from(value, Number),
})
export const strings = (value: readonly string[]): ArrayOf<'string'> => ({ type: 'array', of: 'string', value })
/** An array of arrays. Valid GGUF, but ggml's own reader refuses it. */
export const arrays = (value: readonly GgufArray[]): ArrayOf<'array'> => ({ type: 'array', of: 'array', value })
