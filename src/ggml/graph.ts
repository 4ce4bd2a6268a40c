/** A compute graph. It can be kept and run again as long as the shapes of its inputs hold. */
import { KvasirError } from '../contract/errors.ts'
import type { Context } from './context.ts'
import type { Pointer } from './declare.ts'
import { ffi } from './library.ts'
import type { Tensor } from './tensor.ts'

export class Graph {
  readonly ctx: Context
  readonly ptr: Pointer

  /** @throws KvasirError CAPACITY when the context was made without room for a graph. */
  constructor(ctx: Context) {
    if (!ctx.size.graphNodes) throw new KvasirError('CAPACITY', 'this context was made without room for a graph')
    const ptr = ffi.ggml_new_graph_custom(ctx.ptr, ctx.size.graphNodes, false)
    if (ptr === null) throw new KvasirError('NATIVE_FAILED', 'no graph: context memory ran out')
    this.ctx = ctx
    this.ptr = ptr
  }

  /**
   * Adds `output` and all that it depends on. Nodes run in the order in which they are added: nothing else orders a
   * write into a cache before a later read of it.
   */
  expand(output: Tensor): void {
    if (this.ctx.graphLoad > this.ctx.size.graphNodes)
      throw new KvasirError('CAPACITY', `a graph for ${this.ctx.size.graphNodes} nodes is full`)
    ffi.ggml_build_forward_expand(this.ptr, output.ptr)
  }

  get nodes(): number {
    return ffi.ggml_graph_n_nodes(this.ptr)
  }
}
