/** Our files under ggml's own reader, and ggml's files under ours. Loads libggml-base by itself, nothing else of Kvasir. */
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import koffi from 'koffi'
import { findNativeFiles } from '../platform.ts'
import { GGML_TYPES, type GgmlType, rowBytes } from '../types.ts'
import { VALUE_IDS } from './format.ts'
import * as gguf from './index.ts'

process.env['GGML_NO_BACKTRACE'] = '1'
const lib = koffi.load((await findNativeFiles()).base)
const f = (declaration: string) => lib.func(declaration)
koffi.struct('gguf_params', { no_alloc: 'bool', ctx: 'void*' })
koffi.struct('ggml_params', { mem_size: 'size_t', mem_buffer: 'void*', no_alloc: 'bool' })
const ggml = {
  logSet: f('void ggml_log_set(void*, void*)'),
  init: f('void* ggml_init(ggml_params)'),
  free: f('void ggml_free(void*)'),
  newTensor: f('void* ggml_new_tensor(void*, int, int, const int64_t*)'),
  setName: f('void* ggml_set_name(void*, const char*)'),
  getData: f('void* ggml_get_data(void*)'),
}
const native = {
  empty: f('void* gguf_init_empty()'),
  fromFile: f('void* gguf_init_from_file(const char*, gguf_params)'),
  free: f('void gguf_free(void*)'),
  nKeys: f('int64_t gguf_get_n_kv(void*)'),
  key: f('const char* gguf_get_key(void*, int64_t)'),
  find: f('int64_t gguf_find_key(void*, const char*)'),
  type: f('int gguf_get_kv_type(void*, int64_t)'),
  arrayType: f('int gguf_get_arr_type(void*, int64_t)'),
  arrayCount: f('size_t gguf_get_arr_n(void*, int64_t)'),
  arrayString: f('const char* gguf_get_arr_str(void*, int64_t, size_t)'),
  arrayData: f('void* gguf_get_arr_data(void*, int64_t)'),
  alignment: f('size_t gguf_get_alignment(void*)'),
  dataOffset: f('size_t gguf_get_data_offset(void*)'),
  nTensors: f('int64_t gguf_get_n_tensors(void*)'),
  tensorName: f('const char* gguf_get_tensor_name(void*, int64_t)'),
  tensorType: f('int gguf_get_tensor_type(void*, int64_t)'),
  tensorOffset: f('size_t gguf_get_tensor_offset(void*, int64_t)'),
  tensorSize: f('size_t gguf_get_tensor_size(void*, int64_t)'),
  setArray: f('void gguf_set_arr_data(void*, const char*, int, const void*, size_t)'),
  setStrings: f('void gguf_set_arr_str(void*, const char*, const char**, size_t)'),
  addTensor: f('void gguf_add_tensor(void*, void*)'),
  write: f('bool gguf_write_to_file(void*, const char*, bool)'),
}
ggml.logSet(lib.symbol('ggml_time_us'), null) // any function that ignores its arguments: silence

const folder = mkdtempSync(join(tmpdir(), 'kvasir-native-'))
after(() => rmSync(folder, { recursive: true }))
const path = join(folder, 'm.gguf')

/** Number types with a value for each, and ggml's name for its C type. */
const SCALARS = {
  u8: [200, 'uint8_t'],
  i8: [-100, 'int8_t'],
  u16: [60_000, 'uint16_t'],
  i16: [-30_000, 'int16_t'],
  u32: [4e9, 'uint32_t'],
  i32: [-2e9, 'int32_t'],
  f32: [0.15625, 'float'],
  u64: [2 ** 52, 'uint64_t'],
  i64: [-(2 ** 52), 'int64_t'],
  f64: [1 / 3, 'double'],
} as const

const types = Object.keys(GGML_TYPES) as GgmlType[]
const shape = (type: GgmlType) => [GGML_TYPES[type].block * 2, 3]
const size = (type: GgmlType) => rowBytes(type, shape(type)[0]!) * 3
const fill = (type: GgmlType) => new Uint8Array(size(type)).map((_, i) => i * 7 + GGML_TYPES[type].id)

/** What ggml and we say of the same file must be the same. */
function compare(at: string): void {
  const ours = gguf.readGguf(at)
  const g = native.fromFile(at, { no_alloc: true, ctx: null })
  assert.notEqual(g, null, 'ggml refused the file')
  assert.equal(Number(native.alignment(g)), ours.alignment)
  assert.equal(Number(native.nKeys(g)), ours.metadata.size)
  for (const [i, [key, value]] of [...ours.metadata.entries()].entries()) {
    assert.equal(native.key(g, i), key)
    assert.equal(native.type(g, i), VALUE_IDS[value.type])
    if (value.type === 'array') {
      assert.equal(native.arrayType(g, i), VALUE_IDS[value.of])
      assert.equal(Number(native.arrayCount(g, i)), value.value.length)
      if (value.of === 'string')
        for (const [j, s] of value.value.entries()) assert.equal(native.arrayString(g, i, j), s)
      else if (value.of !== 'array' && value.value.length > 0) {
        const bytes = Buffer.from(koffi.view(native.arrayData(g, i), value.value.byteLength))
        assert.ok(bytes.equals(Buffer.from(value.value.buffer)), key)
      }
    } else if (value.type === 'bool') assert.equal(f('bool gguf_get_val_bool(void*, int64_t)')(g, i), value.value)
    else if (value.type === 'string') assert.equal(f('const char* gguf_get_val_str(void*, int64_t)')(g, i), value.value)
    else {
      const get = f(`${SCALARS[value.type][1]} gguf_get_val_${value.type}(void*, int64_t)`)
      assert.equal(Number(get(g, i)), Number(value.value), key)
    }
  }
  assert.equal(Number(native.nTensors(g)), ours.tensors.size)
  for (const [i, t] of [...ours.tensors.values()].entries()) {
    assert.equal(native.tensorName(g, i), t.name)
    assert.equal(native.tensorType(g, i), GGML_TYPES[t.type].id)
    assert.equal(Number(native.tensorSize(g, i)), t.bytes)
    assert.equal(Number(native.dataOffset(g)) + Number(native.tensorOffset(g, i)), t.offset)
  }
  native.free(g)
}

describe('ggml', () => {
  it('reads what we write: every value type, every tensor type, with and without data', () => {
    const typed = Object.entries(SCALARS).map(([type, [value]]) => [type, { type, value }] as [string, gguf.GgufValue])
    for (const alignment of [32, 4096]) {
      gguf.writeGguf(path, {
        metadata: [
          ...typed,
          ['yes', gguf.bool(true)],
          ['text', gguf.str('grüße 🙂')],
          ['empty', gguf.str('')],
          ['u8s', gguf.u8s(Uint8Array.of(1, 2))],
          ['i64s', gguf.i64s(BigInt64Array.of(-1n, 2n ** 62n))],
          ['f32s', gguf.f32s(Float32Array.of(0.5, -2))],
          ['bools', gguf.bools([true, false, true])],
          ['strings', gguf.strings(['a', '', 'ü'])],
          ['none', gguf.i32s(new Int32Array(0))],
        ],
        tensors: types.map((type) => ({ name: type, type, ne: shape(type), data: () => fill(type) })),
        alignment,
      })
      compare(path)
    }
    // with data: ggml reads the whole section, the padding behind the last tensor too
    const holder = koffi.alloc('void*', 1)
    const g = native.fromFile(path, { no_alloc: false, ctx: holder })
    assert.notEqual(g, null)
    native.free(g)
    ggml.free(koffi.decode(holder, 'void*'))
  })

  it('reads each part of a split model', () => {
    const tensors = types.map((type) => ({ name: type, type, ne: shape(type), data: fill(type) }))
    const paths = gguf.writeGguf(path, { metadata: [['k', gguf.u8(1)]], tensors, splitMaxTensors: 20 })
    assert.equal(paths.length, 2)
    for (const [i, p] of paths.entries()) {
      const g = native.fromFile(p, { no_alloc: true, ctx: null })
      assert.notEqual(g, null)
      assert.equal(Number(native.nTensors(g)), i === 0 ? 20 : types.length - 20)
      native.free(g)
    }
  })

  it('writes what we read', () => {
    const g = native.empty()
    for (const [type, [value, c]] of Object.entries(SCALARS)) {
      f(`void gguf_set_val_${type}(void*, const char*, ${c})`)(g, type, value)
      const array = Buffer.from(new Uint8Array(24).map((_, i) => i * 11))
      native.setArray(g, `${type}s`, VALUE_IDS[type as keyof typeof SCALARS], array, 3)
    }
    f('void gguf_set_val_bool(void*, const char*, bool)')(g, 'bool', true)
    f('void gguf_set_val_str(void*, const char*, const char*)')(g, 'text', 'grüße')
    native.setStrings(g, 'strings', ['a', 'ü', ''], 3)
    // not general.alignment: ggml stores that key but keeps its offsets at 32, and then refuses its own file
    const ctx = ggml.init({ mem_size: 4 << 20, mem_buffer: null, no_alloc: false })
    for (const type of types) {
      const t = ggml.newTensor(ctx, GGML_TYPES[type].id, 2, BigInt64Array.from(shape(type), BigInt))
      ggml.setName(t, type)
      new Uint8Array(koffi.view(ggml.getData(t), size(type))).set(fill(type))
      native.addTensor(g, t)
    }
    assert.ok(native.write(g, path, false))
    native.free(g)
    ggml.free(ctx)

    compare(path)
    const ours = gguf.readGguf(path)
    const bytes = readFileSync(path)
    for (const [type, [value]] of Object.entries(SCALARS)) assert.equal(ours.metadata.getNumber(type), value)
    assert.deepEqual(ours.metadata.getStringArray('strings'), ['a', 'ü', ''])
    assert.equal(ours.alignment, 32)
    for (const t of ours.tensors.values())
      assert.ok(bytes.subarray(t.offset, t.offset + t.bytes).equals(fill(t.type)), t.name)
  })

  it('agrees about the models in this repository', () => {
    const models = fileURLToPath(new URL('../../../models/house-5m/', import.meta.url))
    for (const name of readdirSync(models).filter((n) => n.endsWith('.gguf'))) compare(join(models, name))
  })
})
