/**
 * Numbers that must not be mixed. They are plain numbers at run time; the brand exists for the compiler.
 * A token's *position* (its place in the text, what RoPE sees), its *cell* (where its K and V rows lie in the cache) and
 * its *row* (its index within one step) are three different numbers.
 */
declare const unit: unique symbol
type Unit<N extends string> = number & { readonly [unit]: N }

export type TokenId = Unit<'token'>
export type Position = Unit<'position'>
export type CellId = Unit<'cell'>
export type SequenceId = Unit<'sequence'>
export type RequestId = Unit<'request'>
export type PageId = Unit<'page'>
export type Bytes = Unit<'bytes'>

/** Half-open range `[from, to)`. */
export interface Range {
  readonly from: number
  readonly to: number
}
