/** A compute graph. It can be kept and run again as long as the shapes of its inputs hold. */
import { KvasirError } from '../contract/errors.ts'
import type { Context } from './context.ts'
import type { Pointer } from './declare.ts'
import { ffi } from './library.ts'
import type { Tensor } from './tensor.ts'

export class Graph {
  readonly ctx: Context
  readonly #ptr: Pointer

  /** @throws KvasirError CAPACITY when the context has no room for a graph, or has one already. */
  constructor(ctx: Context) {
    const ptr = ffi.ggml_new_graph_custom(ctx.reserveGraph(), ctx.size.graphNodes, false)
    if (ptr === null) throw new KvasirError('NATIVE_FAILED', 'no graph: context memory ran out')
    this.ctx = ctx
    this.#ptr = ptr
  }

  /** @throws KvasirError DISPOSED when its context is gone */
  get ptr(): Pointer {
    this.ctx.checkAlive()
    return this.#ptr
  }

  /**
   * Adds `output` and all that it depends on. Nodes run in the order in which they are added: nothing else orders a
   * write into a cache before a later read of it.
   */
  expand(output: Tensor): void {
    if (this.ctx.graphLoad > this.ctx.size.graphNodes)
      throw new KvasirError('CAPACITY', `a graph for ${this.ctx.size.graphNodes} nodes is full`)
    output.checkAlive()
    ffi.ggml_build_forward_expand(this.ptr, output.ptr)
  }

  get nodes(): number {
    return ffi.ggml_graph_n_nodes(this.ptr)
  }
}
