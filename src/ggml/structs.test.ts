/** What this binding says about C's types and structs against what the loaded libraries say. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import koffi from 'koffi'
import { llama, loadLlama } from '../model/libllama/library.ts'
import { hostBufferType } from './buffer.ts'
import { Context } from './context.ts'
import { cpuDevice, deviceNamed, devices } from './device.ts'
import { Bench, Random } from './fixture.test.ts'
import { ffi, native } from './library.ts'
import { TENSOR_BUFFER_OFFSET, TENSOR_DATA_OFFSET, TENSOR_EXTRA_OFFSET, type Tensor } from './tensor.ts'
import { GGML_TYPES, typeFromId } from './types.ts'

await loadLlama()

test('the versions that the struct layouts were written for', () => {
  assert.equal(native().version, '0.23.0')
  assert.match(llama.llama_version() ?? '', /0\.4\.0/)
})

test('every tensor type: name, block and bytes', () => {
  for (const [name, { id, block, bytes }] of Object.entries(GGML_TYPES)) {
    const theirs = [ffi.ggml_type_name(id), ffi.ggml_blck_size(id), ffi.ggml_type_size(id)]
    assert.deepEqual(theirs, [name, block, bytes])
    assert.equal(typeFromId(id), name)
  }
})

test('no type of the library is left out', () => {
  const COUNT = 43 // GGML_TYPE_COUNT: asking beyond it ends the process
  const ids = Array.from({ length: COUNT }, (_, i) => i).filter((id) => ffi.ggml_blck_size(id) > 0)
  const known = Object.values(GGML_TYPES).map((t) => t.id as number)
  assert.deepEqual(
    ids.filter((id) => !known.includes(id)),
    [],
  )
  for (const id of [-1, 4, 5, 31, 36, 38, COUNT, 1000]) assert.equal(typeFromId(id), undefined)
})

test('struct ggml_tensor: data, buffer, extra', () => {
  assert.equal(ffi.ggml_tensor_overhead(), 368)
  using bench = new Bench()
  const [t] = bench.operands(new Random(1), { type: 'f32', ne: [4] }) as [Tensor]
  const at = (offset: number) => koffi.decode(t.ptr, offset, 'void*') as bigint | null
  const four = t.floats()
  assert.deepEqual(new Float32Array(koffi.view(at(TENSOR_DATA_OFFSET)!, 16)), four)
  assert.equal(ffi.ggml_backend_buffer_get_size(at(TENSOR_BUFFER_OFFSET)!) >= 16, true)
  assert.equal(at(TENSOR_EXTRA_OFFSET), null)
  // The name lies between data and extra: 64 bytes at 256.
  t.named('abc')
  assert.equal(koffi.decode(t.ptr, 256, koffi.array('char', 4, 'String')), 'abc')

  using empty = new Context({ tensors: 1 })
  const none = empty.tensor('f32', 4)
  assert.equal(none.hasMemory, false)
  assert.equal(koffi.decode(none.ptr, TENSOR_BUFFER_OFFSET, 'void*'), null)
})

test('libllama structs: sizes and defaults', () => {
  const sizes = {
    llama_model_params: 80,
    llama_context_params: 160,
    llama_batch: 56,
    llama_token_data: 12,
    llama_token_data_array: 32,
  }
  for (const [name, size] of Object.entries(sizes)) assert.equal(koffi.sizeof(name), size, name)
  const model = llama.llama_model_default_params()
  assert.equal(model['vocab_only'], false)
  assert.equal(model['use_extra_bufts'], true)
  assert.equal(model['tensor_split'], null)
  assert.equal(model['main_gpu'], 0)
  const context = llama.llama_context_default_params()
  // Fields from all over the struct: one that slipped would not have these values.
  const { n_ctx, n_batch, n_ubatch, n_seq_max, pooling_type, yarn_beta_fast, yarn_beta_slow, type_k, type_v } = context
  assert.deepEqual(
    { n_ctx, n_batch, n_ubatch, n_seq_max, pooling_type, yarn_beta_fast, yarn_beta_slow, type_k, type_v },
    {
      ...{ n_ctx: 512, n_batch: 2048, n_ubatch: 512, n_seq_max: 1, pooling_type: -1 },
      ...{ yarn_beta_fast: -1, yarn_beta_slow: -1, type_k: GGML_TYPES.f16.id, type_v: GGML_TYPES.f16.id },
    },
  )
  assert.equal(context['cb_eval'], null)
  assert.equal(context['embeddings'], false)
  assert.equal(context['offload_kqv'], true)
  assert.equal(context['samplers'], null)
  assert.equal(context['n_samplers'], 0)
})

test('devices: the CPU is there, by kind and by name', () => {
  const cpu = cpuDevice()
  assert.equal(cpu.kind, 'cpu')
  assert.equal(deviceNamed(cpu.name.toLowerCase()).ptr, cpu.ptr)
  assert.throws(() => deviceNamed('CUDA99'), /INVALID_ARGUMENT: no device "CUDA99"; there are: /)
  assert.equal(devices().at(-1)?.kind, 'cpu')
  const { free, total } = cpu.memory()
  assert.ok(free > 0 && free <= total)
  assert.equal(hostBufferType().isHost, true)
  assert.equal(hostBufferType().alignment >= 32, true)
  for (const type of cpu.packingBufferTypes()) assert.equal(type.isPacking && !type.isHost, true)
})
