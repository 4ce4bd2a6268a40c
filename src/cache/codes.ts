/**
 * Numbers as codes of 2 or 4 bits: how a block of 32 rows of one head is packed, and what it costs.
 *
 * Codes lie in planes of 2 bits, low bits first, in ggml's `tq2_0`: a container of integers, since its own scale is always 1. So
 * ggml's `get_rows` unpacks them, as code - 1. A block is a row of 32 d elements, channels fastest; with groups by token, rows
 * fastest, so that ggml multiplies rows of numbers by rows of scales. Behind it come its parameters, f16: the scales of its groups,
 * then their *bases*, the numbers at which all planes read 0 (code 1 of 2 bits, code 5 of 4).
 *
 *   y = (sum over planes p of 4^p v_p) * scale + base      v_p what `get_rows` gives, -1 to 2
 *   x = y * channelScale + channelBase + A B^T             and exactly the outlier where there is one
 */
import { KvasirError } from '../contract/errors.ts'
import { BLOCK_ROWS, type Codes, type Groups } from '../contract/format.ts'
import { rowBytes } from '../ggml/types.ts'
import { type Grid, gridOf, roundTo } from './code-grid.ts'
import { fromHalves, MIN_HALF, toHalves } from './half.ts'
import { lowRank } from './low-rank.ts'
import { fillOutliers } from './outliers.ts'
import { pack, unpack } from './planes.ts'

/** What a block of keys, or of values, takes in an arena. */
export interface CodeLayout {
  /** Planes of 2 bits. */
  readonly planes: number
  /** Bytes of one plane. */
  readonly planeBytes: number
  /** f16 numbers: scales, then bases. */
  readonly params: number
}

/** What belongs to a block besides, by reference where several share it. f16 bits throughout. */
export interface CodeExtras {
  /** [d]; null: 1 */
  readonly channelScale: Uint16Array | null
  /** [d]; null: 0 */
  readonly channelBase: Uint16Array | null
  /** A [rank, 32] of this block, B [rank, d] of all rows that were encoded together. */
  readonly lowRank: { readonly a: Uint16Array; readonly b: Uint16Array } | null
  /** Places in the block, row * d + channel, ascending, and what stands there. */
  readonly outliers: { readonly at: Uint16Array; readonly values: Uint16Array } | null
}

export interface EncodedBlock {
  /** [planes] of planeBytes each, one behind the other. */
  readonly planes: Uint8Array
  /** f16 [params]: scales, then bases, [d] each with groups by channel, [32, d / size] by token. */
  readonly params: Uint16Array
  readonly extras: CodeExtras
}

/** What the first rows of a tier fix for later ones: f16 [d] each, null where the format has none. */
export interface Tier {
  readonly channelScale: Uint16Array | null
  readonly channelBase: Uint16Array | null
}

/** What a plan brings with the rows of one head. */
export interface EncodeOptions {
  /** Of the rows that the head stores in this format already; null: these are the first. */
  readonly tier: Tier | null
  /** f32 [d], above 0: what channels are multiplied by first. Not looked at when there is a tier, which remembers it. */
  readonly balance: Float32Array | null
  /** Same seed, same codes. */
  readonly seed: number
}

// sizes ------------------------------------------------------------------------------------------------------------------

/** Above it, places in a block do not fit 16 bits. */
const MAX_OUTLIER_CHANNELS = 2 ** 16 / BLOCK_ROWS

/** @throws KvasirError INVALID_ARGUMENT for codes that rows of d channels cannot have */
export function checkCodes({ bits, groups, outliers = 0, rank = 0 }: Codes, d: number): void {
  if (!Number.isInteger(d) || d < 8 || d % 8)
    invalid(`codes need a head size that is a multiple of 8, got ${d}: store these rows in a cache type`)
  if (bits !== 2 && bits !== 4) invalid(`codes have 2 or 4 bits, got ${bits}`)
  if (!['token', 'channel', 'tier'].includes(groups.by))
    invalid(`codes have groups by token, channel or tier, got ${groups.by}`)
  if (groups.by === 'token' && !(Number.isInteger(groups.size) && groups.size > 0 && d % groups.size === 0))
    invalid(`groups of ${groups.size} channels must divide a head of ${d}`)
  if (!(outliers >= 0 && outliers <= 1)) invalid(`the share of outliers lies from 0 to 1, got ${outliers}`)
  if (outliers > 0 && d > MAX_OUTLIER_CHANNELS)
    invalid(`outliers need a head of at most ${MAX_OUTLIER_CHANNELS} channels, got ${d}: set outliers to 0`)
  if (!(Number.isInteger(rank) && rank >= 0 && rank <= d)) invalid(`a rank lies from 0 to d = ${d}, got ${rank}`)
}

export function codeLayout({ bits, groups }: Codes, d: number): CodeLayout {
  return { planes: bits / 2, planeBytes: rowBytes('tq2_0', BLOCK_ROWS * d), params: 2 * groupsOf(groups, d) }
}

/** How many a block has of its own. */
function groupsOf(groups: Groups, d: number): number {
  if (groups.by === 'token') return (BLOCK_ROWS * d) / groups.size
  return groups.by === 'channel' ? d : 0
}

/** Bytes of a block in an arena. */
export function blockCodeBytes(c: Codes, d: number): number {
  const { planes, planeBytes, params } = codeLayout(c, d)
  return planes * planeBytes + 2 * params
}

/** Bytes that belong to one block alone. */
export function extrasBytes({ lowRank, outliers }: CodeExtras): number {
  return (lowRank?.a.byteLength ?? 0) + (outliers ? outliers.at.byteLength + outliers.values.byteLength : 0)
}

/** Bytes that other blocks refer to as well: counted once for all of them. */
export function sharedBytes({ channelScale, channelBase, lowRank }: CodeExtras): number {
  return (channelScale?.byteLength ?? 0) + (channelBase?.byteLength ?? 0) + (lowRank?.b.byteLength ?? 0)
}

// encode -----------------------------------------------------------------------------------------------------------------

/**
 * Rows of one head as codes. The places that the last block has left repeat the last row; they count for nothing else. With groups
 * by tier, balance and evening are left out: a scale per channel takes them away again.
 * @param x f32 [d, n], finite, n from 1
 * @returns blocks, and the tier that rows to come are encoded with: the one given, if one is
 * @throws KvasirError INVALID_ARGUMENT
 */
export function encode(x: Float32Array, c: Codes, d: number, o: EncodeOptions): { blocks: EncodedBlock[]; tier: Tier } {
  checkCodes(c, d)
  const n = checkRows(x, d)
  if (o.tier) checkTier(o.tier, c, d)
  else if (o.balance) checkBalance(o.balance, d)
  const factors = c.groups.by === 'tier' ? null : o.tier ? o.tier.channelScale : channelFactors(x, c, d, o.balance)
  const y = divided(x, factors, d, Math.ceil(n / BLOCK_ROWS) * BLOCK_ROWS) // [d, rows]
  const isOutlier = fillOutliers(y, d, n, c.outliers ?? 0, c.groups.by === 'token' ? 'token' : 'channel')
  for (let at = n * d; at < y.length; at++) y[at] = y[at - d]!
  const grid = c.groups.by === 'tier' && o.tier ? gridOfTier(o.tier, y.length / d) : gridOf(y, c, d)
  const tier = o.tier ?? {
    channelScale: c.groups.by === 'tier' ? grid.scales : factors,
    channelBase: c.groups.by === 'tier' ? grid.bases : null,
  }
  const head = { x, d, isOutlier }
  const blocks = assemble(head, c, roundTo(grid, y, c, d), grid, tier)
  return { blocks: c.rank ? withLowRank(blocks, head, c, c.rank, o.seed) : blocks, tier }
}

/** What is encoded. */
interface Head {
  /** f32 [d, n] */
  readonly x: Float32Array
  readonly d: number
  /** [d, n or more], 1 where a number is stored exactly; null: none is. */
  readonly isOutlier: Uint8Array | null
}

function invalid(message: string): never {
  throw new KvasirError('INVALID_ARGUMENT', message)
}

/** How many they are. */
function checkRows(x: Float32Array, d: number): number {
  if (!x.length || x.length % d) invalid(`${x.length} numbers are no rows of ${d}: give f32 [d, n], n from 1`)
  for (let at = 0; at < x.length; at++)
    if (!Number.isFinite(x[at]!)) invalid(`number ${at} of the rows to encode is ${x[at]}: all must be finite`)
  return x.length / d
}

function checkTier(tier: Tier, { groups, evened }: Codes, d: number): void {
  const isTier = groups.by === 'tier'
  for (const [name, array] of Object.entries(tier) as [string, Uint16Array | null][])
    if (array && array.length !== d) invalid(`${name} of a tier has ${array.length} numbers, the head ${d} channels`)
  if (!tier.channelScale && (isTier || evened)) invalid('the tier lacks its channelScale: give what encode returned')
  if (isTier !== (tier.channelBase !== null))
    invalid('a tier has a channelBase exactly with groups by tier: give what encode returned for the same codes')
}

function checkBalance(balance: Float32Array, d: number): void {
  if (balance.length !== d || balance.some((b) => !(b > 0 && b < Number.POSITIVE_INFINITY)))
    invalid(`a balance has ${d} finite numbers above 0, one per channel`)
}

/** What channels are divided by, f16 [d]: sqrt(max |x|) of balanced rows where they are evened, over the balance. */
function channelFactors(x: Float32Array, c: Codes, d: number, balance: Float32Array | null): Uint16Array | null {
  if (!c.evened && !balance) return null
  const factors = new Float32Array(d).fill(1)
  for (let i = 0; i < d; i++) {
    const b = balance ? balance[i]! : 1
    if (c.evened) factors[i] = Math.sqrt(largest(x, d, i) * b) || 1
    factors[i] = Math.max(factors[i]! / b, MIN_HALF) // it must not become 0
  }
  return toHalves(factors)
}

/** max |x| of a channel. */
function largest(x: Float32Array, d: number, channel: number): number {
  let max = 0
  for (let at = channel; at < x.length; at += d) max = Math.max(max, Math.abs(x[at]!))
  return max
}

/** y = x / factor, by channel; with room for `rows`. */
function divided(x: Float32Array, factors: Uint16Array | null, d: number, rows: number): Float32Array {
  const y = new Float32Array(d * rows)
  if (!factors) {
    y.set(x)
    return y
  }
  const f = fromHalves(factors)
  for (let at = 0; at < x.length; at += d) for (let i = 0; i < d; i++) y[at + i] = x[at + i]! / f[i]!
  return y
}

/** The grid that all rows of a tier share. */
function gridOfTier({ channelScale, channelBase }: Tier, rows: number): Grid {
  return { rows, scales: channelScale!, bases: channelBase! }
}

/** Blocks without their low rank, of codes [d, rows]. */
function assemble(
  { x, d, isOutlier }: Head,
  c: Codes,
  codes: Uint8Array,
  grid: Grid,
  { channelScale, channelBase }: Tier,
): EncodedBlock[] {
  const { planes, params } = codeLayout(c, d)
  const size = BLOCK_ROWS * d
  const half = params / 2
  const byToken = c.groups.by === 'token'
  return Array.from({ length: codes.length / size }, (_, b) => {
    const own = new Uint16Array(params)
    const numbers = (of: Uint16Array) => {
      const list = of.subarray(b * half, (b + 1) * half)
      return byToken ? turned(list, half / BLOCK_ROWS, new Uint16Array(half)) : list
    }
    own.set(numbers(grid.scales))
    own.set(numbers(grid.bases), half)
    const block = codes.subarray(b * size, (b + 1) * size)
    const outliers = isOutlier && exactly(x.subarray(b * size), isOutlier.subarray(b * size, (b + 1) * size))
    return {
      planes: pack(byToken ? turned(block, d, new Uint8Array(size)) : block, planes),
      params: own,
      extras: { channelScale, channelBase, lowRank: null, outliers },
    }
  })
}

/** [n, m] -> [m, n] */
function turned<T extends Uint8Array | Uint16Array>(x: T, n: number, out: T): T {
  const m = x.length / n
  for (let j = 0; j < m; j++) for (let i = 0; i < n; i++) out[i * m + j] = x[j * n + i]!
  return out
}

/** The outliers of a block that starts with `x`. */
function exactly(x: Float32Array, isOutlier: Uint8Array): CodeExtras['outliers'] {
  const places: number[] = []
  for (let at = 0; at < isOutlier.length; at++) if (isOutlier[at]) places.push(at)
  if (!places.length) return null
  return { at: Uint16Array.from(places), values: toHalves(Float32Array.from(places, (at) => x[at]!)) }
}

/** Fits what the blocks lack; where outliers stand, they lack nothing. */
function withLowRank(
  blocks: readonly EncodedBlock[],
  { x, d, isOutlier }: Head,
  c: Codes,
  rank: number,
  seed: number,
): EncodedBlock[] {
  const size = BLOCK_ROWS * d
  const residual = Float32Array.from(x) // [d, n]
  for (const [b, block] of blocks.entries()) {
    const decoded = decode(block, c, d)
    const end = Math.min((b + 1) * size, x.length)
    for (let at = b * size; at < end; at++) residual[at]! -= decoded[at - b * size]!
  }
  if (isOutlier) for (let at = 0; at < residual.length; at++) if (isOutlier[at]) residual[at] = 0
  const factors = lowRank(residual, d, rank, seed)
  const a = new Uint16Array(rank * BLOCK_ROWS * blocks.length) // 0 where no row is
  a.set(toHalves(factors.a))
  const b = toHalves(factors.b)
  return blocks.map((block, i) => {
    const own = a.slice(i * rank * BLOCK_ROWS, (i + 1) * rank * BLOCK_ROWS)
    return { ...block, extras: { ...block.extras, lowRank: { a: own, b } } }
  })
}

// decode -----------------------------------------------------------------------------------------------------------------

/** The numbers that a block stands for, f32 [d, 32], by the formula above. */
export function decode({ planes, params, extras }: EncodedBlock, c: Codes, d: number): Float32Array {
  const v = unpack(planes, codeLayout(c, d).planes) // [d, 32], or [32, d]
  const out = new Float32Array(v.length)
  const p = fromHalves(params)
  const groups = p.length / 2
  const scale = extras.channelScale && fromHalves(extras.channelScale)
  const base = extras.channelBase && fromHalves(extras.channelBase)
  const size = c.groups.by === 'token' ? c.groups.size : null
  for (let at = 0; at < v.length; at++) {
    const [row, channel] = [Math.floor(at / d), at % d]
    const g = size ? Math.floor(channel / size) * BLOCK_ROWS + row : channel
    const code = v[size ? channel * BLOCK_ROWS + row : at]!
    const y = groups ? code * p[g]! + p[groups + g]! : code
    out[at] = y * (scale ? scale[channel]! : 1) + (base ? base[channel]! : 0)
  }
  if (extras.lowRank) addProduct(out, d, fromHalves(extras.lowRank.a), fromHalves(extras.lowRank.b))
  if (extras.outliers) {
    const exact = fromHalves(extras.outliers.values)
    for (const [i, at] of extras.outliers.at.entries()) out[at] = exact[i]!
  }
  return out
}

/** x + A B^T, for x [d, rows], A [rank, rows], B [rank, d]. */
function addProduct(x: Float32Array, d: number, a: Float32Array, b: Float32Array): void {
  const rank = b.length / d
  for (let at = 0; at < x.length; at++) {
    const [row, channel] = [Math.floor(at / d), at % d]
    let sum = 0
    for (let k = 0; k < rank; k++) sum += a[row * rank + k]! * b[channel * rank + k]!
    x[at]! += sum
  }
}
