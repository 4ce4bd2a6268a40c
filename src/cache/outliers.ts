/** Extreme numbers that codes are better off without (GEAR, arXiv 2403.05527). */

/**
 * Of each vector, a channel's rows or a row's channels, the k smallest and the k largest numbers, k = floor(share / 2 * its length),
 * become the vector's mean, so that ranges shrink. Of equal ones the first count as smallest, the last as largest.
 * @param y f32 [d, n or more], finite; only the first n rows are looked at
 * @returns [d, n or more], 1 where a number was replaced; null when none was
 */
export function fillOutliers(
  y: Float32Array,
  d: number,
  n: number,
  share: number,
  vectors: 'channel' | 'token',
): Uint8Array | null {
  const [length, count] = vectors === 'channel' ? [n, d] : [d, n]
  const [stride, apart] = vectors === 'channel' ? [d, 1] : [1, d] // of numbers in a vector, and of vectors
  const k = Math.floor((share / 2) * length)
  if (!k) return null
  const isOutlier = new Uint8Array(y.length)
  const vector = new Float32Array(length)
  for (let first = 0; first < count * apart; first += apart) {
    let sum = 0
    for (let i = 0; i < length; i++) sum += vector[i] = y[first + i * stride]!
    for (const i of ends(vector, k)) {
      y[first + i * stride] = sum / length
      isOutlier[first + i * stride] = 1
    }
  }
  return isOutlier
}

/** Where the k smallest and the k largest numbers are. */
function ends(v: Float32Array, k: number): Int32Array {
  const sorted = Float32Array.from(v) // as far as needed
  const low = select(sorted, k - 1)
  const high = select(sorted, v.length - k)
  const at = new Int32Array(2 * k)
  let [below, above] = [0, 2 * k] // those found fill `at` from both sides
  for (let i = 0; i < v.length; i++)
    if (v[i]! < low) at[below++] = i
    else if (v[i]! > high) at[--above] = i
  for (let i = 0; below < k; i++) if (v[i] === low) at[below++] = i
  for (let i = v.length - 1; above > k; i--) if (v[i] === high) at[--above] = i
  return at
}

/** The number that has k others before it in ascending order. Reorders `v`: smaller ones before it, larger behind (Hoare 1961). */
function select(v: Float32Array, k: number): number {
  let [left, right] = [0, v.length - 1]
  while (left < right) {
    const pivot = v[k]!
    let [i, j] = [left, right]
    while (i <= j) {
      while (v[i]! < pivot) i++
      while (v[j]! > pivot) j--
      if (i > j) break
      const swapped = v[i]!
      v[i++] = v[j]!
      v[j--] = swapped
    }
    if (j < k) left = i
    if (k < i) right = j
  }
  return v[k]!
}
