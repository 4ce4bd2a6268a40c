/** A kept pool of compute threads for a CPU backend. */
import type { Pointer } from './declare.ts'
import { cpu } from './library.ts'
import { Owned } from './owned.ts'

/** `struct ggml_threadpool_params`, 64 bit: 512 bytes of cpu mask, then n_threads, prio, poll, strict_cpu, paused. */
const PARAMS_BYTES = 528
const AT = { threads: 512, poll: 520 } as const

/**
 * How long idle workers spin before they sleep, 0 to 100: about 2 ms a unit. 1 bridges the gap between decode steps. ggml's
 * default of 50 burns 85 ms of a core after every graph, which on two cores slows whatever comes next.
 */
const POLL = 1

export class ThreadPool extends Owned {
  /** Mask and priority stay unset: ggml would apply them to the calling thread, which is Node's main thread. */
  constructor(threads: number) {
    const params = new Uint8Array(PARAMS_BYTES)
    const view = new DataView(params.buffer)
    view.setInt32(AT.threads, threads, true)
    view.setUint32(AT.poll, POLL, true)
    super('threadpool', cpu.ggml_threadpool_new(params))
  }

  protected override free(ptr: Pointer): void {
    cpu.ggml_threadpool_free(ptr)
  }
}
