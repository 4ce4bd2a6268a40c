/**
 * Rows that change their format. They do so in whole blocks, since a block that is not full wastes its room; and for good, since
 * the store moves a row once.
 */
import { BLOCK_ROWS } from '../../contract/format.ts'
import type { CompressionPlan, ModelDims, PolicyState, StoredRows } from '../../contract/policy.ts'

/** In {@link PolicyState.formats}: a row is stored as it was computed. */
export const AS_COMPUTED = 0

/** The most rows that are whole blocks. @param block rows that go together, a multiple of {@link BLOCK_ROWS} */
export const wholeBlocks = (rows: number, block = BLOCK_ROWS): number => block * Math.floor(Math.max(0, rows) / block)

/** For `check`: what is wrong with an option that counts rows of whole blocks; null: nothing. */
export const blockProblem = (option: string, rows: number): string | null =>
  rows % BLOCK_ROWS === 0 ? null : `'${option}' must be a multiple of ${BLOCK_ROWS}, the rows of a block; got ${rows}`

/** Channels that share a scale: as many as divide the head size evenly, `most` or fewer. */
export function channelGroup({ headDim }: ModelDims, most: number): number {
  let size = Math.min(most, headDim)
  while (headDim % size !== 0) size--
  return size
}

/** One thing for every layer and KV head. */
export const everywhere = <T>({ layers, kvHeads }: ModelDims, of: (layer: number, kvHead: number) => T): T[][] =>
  Array.from({ length: layers }, (_, layer) => Array.from({ length: kvHeads }, (_, kvHead) => of(layer, kvHead)))

/** Indices of a head's rows that are stored so, ascending. @param stored as {@link PolicyState.formats} says it */
export function rowsStored(stored: number, state: PolicyState, layer: number, kvHead: number): Int32Array {
  const { positions, formats } = state
  const now = formats?.(layer, kvHead)
  const n = positions(layer, kvHead).length
  const found = new Int32Array(n)
  let count = 0
  for (let j = 0; j < n; j++) if ((now?.[j] ?? AS_COMPUTED) === stored) found[count++] = j
  return found.slice(0, count)
}

/** All rows of every head, `[layer][kvHead]`; heads of one length share a list. */
export function allRows({ model, positions }: PolicyState): Int32Array[][] {
  const known = new Map<number, Int32Array>()
  return everywhere(model, (layer, kvHead) => {
    const n = positions(layer, kvHead).length
    const rows = known.get(n) ?? Int32Array.from({ length: n }, (_, j) => j)
    known.set(n, rows)
    return rows
  })
}

/** Rows of every head without some of them, both `[layer][kvHead]`. */
export const without = (
  all: readonly (readonly Int32Array[])[],
  gone: readonly (readonly Int32Array[])[],
): Int32Array[][] =>
  all.map((heads, layer) =>
    heads.map((rows, kvHead) => {
      const left = new Set(gone[layer]![kvHead])
      return rows.filter((j) => !left.has(j))
    }),
  )

/** All rows stay, some in another format; lists without rows are left out. */
export function storePlan(state: PolicyState, stored: readonly StoredRows[], memory?: unknown): CompressionPlan {
  const moved = stored.filter(({ rows }) => rows.some((heads) => heads.some((list) => list.length > 0)))
  const remembered = memory === undefined ? {} : { memory }
  if (moved.length === 0) return { kind: 'keep-all', ...remembered }
  return { kind: 'keep', rows: allRows(state), stored: moved, ...remembered }
}

/**
 * The oldest rows that are stored as they were computed go to a format: the same in every head, where all heads hold the same rows
 * in the same formats.
 * @param due how many, of so many that are stored as they were computed
 */
export function storeOldest(state: PolicyState, format: number, due: (computed: number) => number): CompressionPlan {
  const computed = rowsStored(AS_COMPUTED, state, 0, 0)
  const rows = computed.slice(0, due(computed.length))
  return storePlan(state, [{ format, rows: everywhere(state.model, () => rows) }])
}
