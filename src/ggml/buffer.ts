/** Memory for tensor data: buffer types, buffers, and buffers over a mapped file. */
import koffi from 'koffi'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { Context } from './context.ts'
import type { Pointer } from './declare.ts'
import { ffi } from './library.ts'
import { Owned } from './owned.ts'
import { canGiveBack, giveBack, zeroUntouched } from './posix.ts'
import { TENSOR_BUFFER_OFFSET, type Tensor } from './tensor.ts'

export class BufferType {
  readonly ptr: Pointer
  readonly name: string
  /** True when JS and the CPU backend can read its memory as plain bytes. */
  readonly isHost: boolean
  /** True for AMX and CPU_REPACK: bytes are rearranged when set, and only matrix products may read them. */
  readonly isPacking: boolean

  constructor(ptr: Pointer, isPacking = false) {
    this.ptr = ptr
    this.name = ffi.ggml_backend_buft_name(ptr) ?? '?'
    this.isHost = ffi.ggml_backend_buft_is_host(ptr)
    this.isPacking = isPacking
  }

  /** Bytes that this type needs for `t`: packed weights can be larger than the plain ones. */
  allocBytes(t: Tensor): number {
    return ffi.ggml_backend_buft_get_alloc_size(this.ptr, t.ptr)
  }

  get alignment(): number {
    return ffi.ggml_backend_buft_get_alignment(this.ptr)
  }
}

/** Plain host memory. */
export function hostBufferType(): BufferType {
  return new BufferType(ffi.ggml_backend_cpu_buffer_type()!)
}

export class Buffer extends Owned {
  /** Bytes taken. */
  readonly bytes: number
  readonly type: BufferType | null
  /** Start of memory that someone else owns. */
  #address: Pointer | null = null

  private constructor(ptr: Pointer | null, type: BufferType | null, failure: string) {
    super('buffer', ptr, failure)
    this.type = type
    this.bytes = ffi.ggml_backend_buffer_get_size(this.ptr)
  }

  /**
   * Gives memory to all tensors of `ctx`. The memory is not zeroed.
   * @throws KvasirError OUT_OF_MEMORY
   */
  static forContext(ctx: Context, type: BufferType): Buffer {
    if (ctx.tensorCount === 0) throw new KvasirError('INVALID_ARGUMENT', 'a context without tensors needs no buffer')
    const ptr = ffi.ggml_backend_alloc_ctx_tensors_from_buft(ctx.ptr, type.ptr)
    if (ptr === null)
      throw new KvasirError('OUT_OF_MEMORY', `${type.name} could not allocate a buffer for ${ctx.tensorCount} tensors`)
    ctx.packed = type.isPacking
    return (ctx.buffer = new Buffer(ptr, type, ''))
  }

  /** A buffer over memory that someone else owns (a mapped file); `address` must be a multiple of 32. */
  static overMemory(address: Pointer, bytes: number): Buffer {
    if (address % 32n) throw new KvasirError('INVALID_ARGUMENT', `address ${address} is no multiple of 32`)
    const buffer = new Buffer(
      ffi.ggml_backend_cpu_buffer_from_ptr(address, bytes),
      null,
      'no buffer over mapped memory',
    )
    buffer.#address = address
    return buffer
  }

  /** Gives one tensor without memory an address inside this buffer over memory. @throws KvasirError INVALID_ARGUMENT */
  bind(t: Tensor, address: Pointer): void {
    t.checkAlive()
    const start = this.#address
    if (start === null || address < start || address + BigInt(t.bytes) > start + BigInt(this.bytes))
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `a tensor of ${showBytes(t.bytes)} at ${address} is outside this buffer`,
      )
    if (t.hasMemory) throw new KvasirError('INVALID_ARGUMENT', 'this tensor has memory already')
    if (ffi.ggml_backend_tensor_alloc(this.ptr, t.ptr, address) !== 0)
      throw new KvasirError('NATIVE_FAILED', `could not bind a tensor of ${showBytes(t.bytes)}`)
  }

  /**
   * Sets every byte: KV caches must be cleared, since 0 x NaN of unused rows is NaN. Plain memory that is set to 0 takes none until it
   * is written to, where the system can do that.
   */
  clear(value = 0): void {
    if (value === 0 && this.canGiveBack && zeroUntouched(ffi.ggml_backend_buffer_get_base(this.ptr)!, this.bytes))
      return
    ffi.ggml_backend_buffer_clear(this.ptr, value)
  }

  /** Whether memory of this buffer can go back to the system before the buffer does: plain memory, on Linux. */
  get canGiveBack(): boolean {
    return canGiveBack && this.type?.name === 'CPU'
  }

  /**
   * Bytes [offset, offset + bytes) of a tensor in this buffer are not needed: what of them are whole pages of the system goes back to it,
   * where that can be done, and reads as 0 until it is written to. The rest stays as it is.
   * @returns bytes that went back
   */
  giveBack(t: Tensor, offset: number, bytes: number): number {
    return this.canGiveBack ? giveBack(t.address(offset, bytes), bytes) : 0
  }

  /** Tells the schedulers that this holds weights, so that work moves to them rather than they to the work. */
  holdsWeights(): this {
    ffi.ggml_backend_buffer_set_usage(this.ptr, 1)
    return this
  }

  protected override free(ptr: Pointer): void {
    ffi.ggml_backend_buffer_free(ptr)
  }
}

/**
 * Whether `device` can run `op` if its weight lay in a buffer of `type`. The weight gets an empty buffer of that type for
 * the question, as llama.cpp asks it: without one, `supports_op` answers for plain memory.
 */
export function supportsWeight(device: Pointer, type: BufferType, weight: Tensor, op: Tensor): boolean {
  if (weight.hasMemory) throw new KvasirError('INVALID_ARGUMENT', 'supportsWeight: this weight has memory already')
  const empty = ffi.ggml_backend_buft_alloc_buffer(type.ptr, 0)
  if (empty === null) return false
  try {
    koffi.encode(weight.ptr, TENSOR_BUFFER_OFFSET, 'void*', empty)
    return ffi.ggml_backend_dev_supports_op(device, op.ptr)
  } finally {
    koffi.encode(weight.ptr, TENSOR_BUFFER_OFFSET, 'void*', null)
    ffi.ggml_backend_buffer_free(empty)
  }
}
