/** A sequence as the store keeps it: which rows it has, where they lie, and where it grows. What is done with it, `store.ts` does. */
import type { SequenceId } from '../contract/units.ts'
import type { Tier } from './codes.ts'
import { Column } from './column.ts'
import type { Extent } from './pages.ts'

export class KvSequence {
  readonly id: SequenceId
  /** Arena in which new rows are stored. */
  arena: number
  layout: 'uniform' | 'ragged' = 'uniform'
  /** One, or [layer * Hkv + head]. */
  columns: Column[] = [new Column()]
  extent: Extent | null = null
  /** How long it may become; its extent is claimed with its first page. */
  expectedRows = 0
  /** Distances between rows are counted in rows that are there, not in positions: see {@link slotShifts}. */
  inSlots = false
  /** Arena that the extent lies in: rows may be stored in another one later. */
  extentArena: number
  /** What the first rows in codes fixed for later ones, by {@link tierKey}. */
  readonly tiers = new Map<string, { readonly keys: Tier; readonly values: Tier }>()

  constructor(id: SequenceId, arena: number) {
    this.id = id
    this.arena = arena
    this.extentArena = arena
  }

  /** The column that holds for a layer and head. */
  column(layer: number, head: number, kvHeads: number): Column {
    return this.columns[this.layout === 'uniform' ? 0 : layer * kvHeads + head]!
  }

  /** Rows of the longest column. */
  get rows(): number {
    return this.columns.reduce((most, c) => Math.max(most, c.rows), 0)
  }
}

export function tierKey(column: number, arena: number): string {
  return `${column} ${arena}`
}
