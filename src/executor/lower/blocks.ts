/**
 * Products with rows in codes. A number is its code times the scale of its group plus the group's base; with few queries both are
 * applied to what codes are multiplied with, or to the products, so that codes are read once and numbers never written. With many,
 * {@link numbersOf} makes numbers first.
 *
 *   R = rows times query heads of a KV head, P = blocks of 32 rows
 */
import { BLOCK_ROWS } from '../../contract/format.ts'
import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'

/** A group is a channel's 32 rows in a block. */
export interface CodedByChannel {
  readonly by: 'channel'
  /** f32 [d, 32, P, Hkv] */
  readonly codes: Tensor
  /** f32 [d, 1, P, Hkv] */
  readonly scale: Tensor
  readonly base: Tensor
}

/** A group is `size` channels of a row. */
export interface CodedByToken {
  readonly by: 'token'
  readonly size: number
  /** f32 [32, d, P, Hkv]: rows fastest. */
  readonly codes: Tensor
  /** f32 [32, d / size, P, Hkv] */
  readonly scale: Tensor
  readonly base: Tensor
}

/** Rows of a part, block by block. */
export type CodedRows = CodedByChannel | CodedByToken

export function isCoded(rows: Tensor | CodedRows): rows is CodedRows {
  return 'codes' in rows
}

/** More rows of queries are a larger tensor, repeated for each block, than the numbers are. */
const MOST_QUERIES = BLOCK_ROWS

export function isFewRows(rows: number): boolean {
  return rows <= MOST_QUERIES
}

/** Rows of all blocks. */
export function codedRowCount({ codes }: CodedRows): number {
  return BLOCK_ROWS * codes.ne[2]
}

/** As numbers: f32 [d, n, Hkv], or by token [n, d, Hkv]: to turn them costs more than all else. */
export function numbersOf(c: Context, rows: CodedRows): Tensor {
  const { codes, scale, base } = rows
  const [, , P, heads] = codes.ne
  if (rows.by === 'channel') {
    const [d] = codes.ne
    return ops.reshape(c, ops.add(c, ops.mul(c, codes, scale), base), d, BLOCK_ROWS * P, heads)
  }
  const [, d] = codes.ne
  const groups = d / rows.size
  const each = (t: Tensor) => ops.view(c, t, [BLOCK_ROWS, 1, groups, P * heads], [t.nb[1], t.nb[1], t.nb[2]], 0)
  const grouped = ops.reshape(c, codes, BLOCK_ROWS, rows.size, groups, P * heads)
  const numbers = ops.add(c, ops.mul(c, grouped, each(scale)), each(base))
  const inBlocks = ops.reshape(c, numbers, BLOCK_ROWS, d, P, heads)
  return ops.reshape(c, ops.cont(c, ops.permute(c, inBlocks, 0, 2, 1, 3)), BLOCK_ROWS * P, d, heads)
}

/** Products of keys with q f32 [d, R, Hkv] -> [n, R, Hkv]. */
export function keyProducts(c: Context, keys: CodedRows, q: Tensor): Tensor {
  const [, R, Hkv] = q.ne
  const P = keys.codes.ne[2]
  const inBlocks = keys.by === 'channel' ? byChannel(c, keys, q) : byToken(c, keys, q) // [32, R, P, Hkv]
  return ops.reshape(c, ops.cont(c, ops.permute(c, inBlocks, 0, 2, 1, 3)), BLOCK_ROWS * P, R, Hkv)
}

/** Queries times scales, and the base's product for all 32 rows at once. */
function byChannel(c: Context, { codes, scale, base }: CodedByChannel, q: Tensor): Tensor {
  const [d, R, Hkv] = q.ne
  const P = codes.ne[2]
  const own = ops.repeat(c, ops.reshape(c, q, d, R, 1, Hkv), d, R, P, Hkv)
  const kq = ops.mulMat(c, codes, ops.mul(c, own, scale)) //  [32, R, P, Hkv]
  return ops.add(c, kq, ops.mulMat(c, base, own)) //          [1, R, P, Hkv]
}

/** Products of a group's channels times the row's scale, and its base times the sum of the queries there. */
function byToken(c: Context, keys: CodedByToken, q: Tensor): Tensor {
  const [, R, Hkv] = q.ne
  const P = keys.codes.ne[2]
  const parts = groupsOf(c, keys).map(({ codes, scale, base, from }) => {
    const own = ops.view(c, q, [keys.size, R, 1, Hkv], [q.nb[1], q.nb[2], q.nb[2]], from * q.nb[0])
    const repeated = ops.repeat(c, own, keys.size, R, P, Hkv)
    const kq = ops.outProd(c, codes, ops.transpose(c, repeated)) // [32, R, P, Hkv]
    const sums = ops.sumRows(c, repeated) //                         [1, R, P, Hkv]
    const bases = ops.mul(c, ops.repeat(c, base, BLOCK_ROWS, R, P, Hkv), sums)
    return ops.add(c, ops.mul(c, kq, scale), bases)
  })
  return parts.reduce((a, b) => ops.add(c, a, b))
}

/** Weighted sum of values: weights f32 [n, R, Hkv] -> [d, R, Hkv]. */
export function valueSums(c: Context, values: CodedByToken, weights: Tensor): Tensor {
  const [, R, Hkv] = weights.ne
  const P = values.codes.ne[2]
  const strides = [BLOCK_ROWS * weights.nb[0], weights.nb[1], weights.nb[2]]
  const split = ops.view(c, weights, [BLOCK_ROWS, P, R, Hkv], strides)
  const own = ops.cont(c, ops.permute(c, split, 0, 2, 1, 3)) // [32, R, P, Hkv]
  const parts = groupsOf(c, values).map(({ codes, scale, base }) => {
    const o = ops.mulMat(c, codes, ops.mul(c, own, scale)) //    [size, R, P, Hkv]
    return ops.add(c, o, ops.mulMat(c, base, own)) //            [1, R, P, Hkv]
  })
  return parts.map((x) => sumOfBlocks(c, x)).reduce((a, b) => ops.concat(c, a, b, 0))
}

/** [m, R, P, Hkv] -> [m, R, Hkv], half to half: ggml's own sum along another dimension than the first is a copy and one thread. */
function sumOfBlocks(c: Context, x: Tensor): Tensor {
  const [m, R, P, Hkv] = x.ne
  if (P === 1) return ops.reshape(c, x, m, R, Hkv)
  const half = Math.floor(P / 2)
  const from = (block: number, blocks: number) =>
    ops.view(c, x, [m, R, blocks, Hkv], [x.nb[1], x.nb[2], x.nb[3]], block * x.nb[2])
  const sum = ops.add(c, from(0, half), from(half, half))
  const halved = sumOfBlocks(c, sum)
  return P % 2 ? ops.add(c, halved, ops.reshape(c, ops.cont(c, from(P - 1, 1)), m, R, Hkv)) : halved
}

interface Group {
  /** f32 [32, size, P, Hkv] */
  readonly codes: Tensor
  /** f32 [32, 1, P, Hkv] */
  readonly scale: Tensor
  readonly base: Tensor
  /** Its first channel. */
  readonly from: number
}

function groupsOf(c: Context, { codes, scale, base, size }: CodedByToken): Group[] {
  const slice = (t: Tensor, from: number, n: number) =>
    ops.view(c, t, [t.ne[0], n, t.ne[2], t.ne[3]], [t.nb[1], t.nb[2], t.nb[3]], from * t.nb[1])
  return Array.from({ length: codes.ne[1] / size }, (_, g) => ({
    codes: slice(codes, g * size, size),
    scale: slice(scale, g, 1),
    base: slice(base, g, 1),
    from: g * size,
  }))
}
