/** Devices that ggml found: the CPU, and a GPU when a build with its driver is installed. */

import koffi from 'koffi'
import { KvasirError } from '../contract/errors.ts'
import { BufferType } from './buffer.ts'
import type { Pointer } from './declare.ts'
import { cpu, ffi, native } from './library.ts'

export type DeviceKind = 'cpu' | 'gpu' | 'igpu' | 'accelerator'
const KINDS: readonly DeviceKind[] = ['cpu', 'gpu', 'igpu', 'accelerator']

export class Device {
  readonly ptr: Pointer
  readonly kind: DeviceKind
  /** Short name, e.g. `CPU`, `CUDA0`, `Vulkan0`. */
  readonly name: string
  readonly description: string

  constructor(ptr: Pointer) {
    this.ptr = ptr
    this.kind = KINDS[ffi.ggml_backend_dev_type(ptr)] ?? 'accelerator'
    this.name = ffi.ggml_backend_dev_name(ptr) ?? '?'
    this.description = ffi.ggml_backend_dev_description(ptr) ?? '?'
  }

  get bufferType(): BufferType {
    return new BufferType(ffi.ggml_backend_dev_buffer_type(this.ptr)!)
  }

  /** Free and total bytes, as the device reports them. */
  memory(): { free: number; total: number } {
    const out = new BigUint64Array(2)
    ffi.ggml_backend_dev_memory(this.ptr, out.subarray(0, 1), out.subarray(1, 2))
    return { free: Number(out[0]), total: Number(out[1]) }
  }

  /** Repacking buffer types, best first: AMX where the processor has it, then CPU_REPACK. CPU only. */
  packingBufferTypes(): BufferType[] {
    if (this.kind !== 'cpu') return []
    const list = cpu.ggml_backend_dev_get_extra_bufts(this.ptr)
    const types: BufferType[] = []
    if (list === null) return types
    for (let i = 0; ; i++) {
      const ptr = koffi.decode(list, i * 8, 'void*') as Pointer | null
      if (ptr === null) return types
      types.push(new BufferType(ptr, true))
    }
  }
}

export function devices(): Device[] {
  return native().devices.map((ptr) => new Device(ptr))
}

export function cpuDevice(): Device {
  return devices().find((d) => d.kind === 'cpu')!
}

/** @throws KvasirError INVALID_ARGUMENT when the name is not among the devices. */
export function deviceNamed(name: string): Device {
  const all = devices()
  const found = all.find((d) => d.name.toLowerCase() === name.toLowerCase())
  if (!found)
    throw new KvasirError('INVALID_ARGUMENT', `no device "${name}"; there are: ${all.map((d) => d.name).join(', ')}`)
  return found
}
