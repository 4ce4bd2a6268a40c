/** Numbers in [0, 1) that depend on their seeds alone: the same row gets the same one whenever it is asked for. */

/** A hash of whole numbers: each is mixed in with the finaliser of MurmurHash3. */
export function randomOf(...seeds: readonly number[]): number {
  let x = 0x9e3779b9
  for (const seed of seeds) {
    x = (x ^ seed) >>> 0
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
    x = ((x ^ (x >>> 16)) + 0x9e3779b9) >>> 0
  }
  return x / 2 ** 32
}
