/** What each key of a sequence got from all query rows so far, by layer and query head. */
import type { ObservedLayer } from '../contract/observation.ts'

interface Layer {
  /** Positions of the keys, by KV head. */
  positions: Int32Array[]
  /** Sums by query head, along the keys of its KV head: f64, since thousands of rows are added. */
  sums: Float64Array[]
}

export class ColumnSums {
  #layers: Layer[] = []

  clear(): void {
    this.#layers = []
  }

  copy({ observed }: ColumnSums): void {
    this.clear()
    this.add(observed)
  }

  /**
   * Adds the sums over some more rows. Keys that were there before are there still, but for padding that was taken back and that
   * no row could see; new ones stand behind them.
   */
  add(observed: readonly ObservedLayer[]): void {
    for (const [i, { keys, positions, statistics }] of observed.entries()) {
      const sum = statistics.sum!
      const n = Math.max(...keys)
      const heads = sum.length / n
      const group = heads / keys.length
      const layer = (this.#layers[i] ??= {
        positions: [],
        sums: Array.from({ length: heads }, () => new Float64Array(0)),
      })
      layer.positions = keys.map((_, head) => positions[head] ?? positions[0]!)
      layer.sums = layer.sums.map((old, head) => {
        const length = keys[Math.floor(head / group)]!
        const next = new Float64Array(length)
        next.set(old.subarray(0, length))
        for (let j = 0; j < length; j++) next[j]! += sum[head * n + j]!
        return next
      })
    }
  }

  /** Rows that a plan keeps, by layer and KV head. */
  keep(rows: readonly (readonly Int32Array[])[]): void {
    for (const [i, layer] of this.#layers.entries()) {
      const group = layer.sums.length / rows[i]!.length
      layer.sums = layer.sums.map((old, head) => Float64Array.from(rows[i]![Math.floor(head / group)]!, (j) => old[j]!))
      layer.positions = layer.positions.map((old, head) => Int32Array.from(rows[i]![head]!, (j) => old[j]!))
    }
  }

  get observed(): readonly ObservedLayer[] {
    return this.#layers.map(({ positions, sums }) => {
      const n = Math.max(...sums.map((s) => s.length))
      const sum = new Float32Array(n * sums.length)
      for (const [head, s] of sums.entries()) sum.set(s, head * n)
      return { keys: positions.map((p) => p.length), positions, statistics: { sum } }
    })
  }
}
