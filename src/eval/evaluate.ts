/**
 * Every treatment of every cell: several examples at a time, which the engine batches. An example goes through its treatments
 * one after the other, so that they can share what is the same for all of them; a cell's rows are ready when its examples are
 * through.
 */
import { KvasirError } from '../contract/errors.ts'
import type { EngineApi } from '../engine/api.ts'
import type { Cell } from './cells.ts'
import { makePlayer } from './play.ts'
import { type EvalRow, type Played, rowOf, runFacts } from './row.ts'
import { isFull, type Treatment } from './treatments.ts'

/** A row that there is not: the policy cannot do what it is asked. */
export interface Refusal {
  readonly cell: Cell
  readonly treatment: Treatment
  readonly error: KvasirError
}

export interface EvalOptions {
  /** Examples that run at once. Default 4: so many contexts the engine has room for by default. */
  readonly concurrency?: number
  /** Ask without a chat template, for models that have none. Default false. */
  readonly raw?: boolean
  /**
   * Treatments find each other's prompts in the cache: several times faster with many of them, but then only the full cache's
   * time to the first token means anything, and the others' is null. Default false: each computes its own.
   */
  readonly sharedPrompts?: boolean
  /** Rows that exist already, for what is not to be run again. */
  readonly finished?: (cell: Cell, treatment: Treatment) => EvalRow | undefined
  /** Examples under each treatment, of what is run. */
  readonly onProgress?: (done: number, of: number) => void
  /** As they come; finished ones are not told. */
  readonly onRow?: (row: EvalRow) => void
  /** Default: a refusal is an error like others. */
  readonly onRefusal?: (refusal: Refusal) => void
  readonly signal?: AbortSignal
}

/** A treatment of a cell, while it is open. */
interface Entry {
  readonly cell: Cell
  readonly treatment: Treatment
  /** Its place among the rows. */
  readonly at: number
  readonly played: Map<number, Played>
  refused: boolean
}

/**
 * Rows in the order of the cells and their treatments, without those that were refused.
 * @throws KvasirError CONTEXT_OVERFLOW, ABORTED, and what writing an example throws
 */
export async function evaluate(
  engine: EngineApi,
  cells: readonly Cell[],
  options: EvalOptions = {},
): Promise<EvalRow[]> {
  const { concurrency = 4, raw = false, sharedPrompts = false, finished, onProgress, onRow, onRefusal } = options
  const all = cells.flatMap((cell) => cell.treatments.map((treatment) => ({ cell, treatment })))
  const rows = all.map(({ cell, treatment }) => finished?.(cell, treatment))
  const open = all.flatMap((entry, at) => (rows[at] ? [] : [{ ...entry, at }]))
  const entriesOf = (cell: Cell) =>
    open.filter((entry) => entry.cell === cell).map((entry): Entry => ({ ...entry, played: new Map(), refused: false }))
  const work = cells.flatMap((cell) => {
    const entries = entriesOf(cell)
    return entries.length ? Array.from({ length: cell.n }, (_, i) => ({ cell, entries, i })) : []
  })
  const total = work.reduce((sum, { entries }) => sum + entries.length, 0)
  let done = 0

  await inParallel(work, concurrency, options.signal, async ({ cell, entries, i }, signal) => {
    const salt = (treatment: Treatment) => JSON.stringify([cell.mode, sharedPrompts ? null : treatment])
    const play = makePlayer(engine, cell.example(i), { raw, salt })
    for (const entry of entries) {
      if (!entry.refused) await tried(entry, async () => entry.played.set(i, await play(entry.treatment, signal)))
      onProgress?.(++done, total)
      if (entry.refused || entry.played.size < cell.n) continue
      const row = finish(entry)
      rows[entry.at] = row
      onRow?.(row)
    }
  })
  return rows.filter((row) => row !== undefined)

  async function tried(entry: Entry, run: () => Promise<unknown>): Promise<void> {
    try {
      await run()
    } catch (error) {
      if (!onRefusal || !isRefusal(error, entry.treatment)) throw error
      // Another example of the cell may have found out before.
      if (!entry.refused) onRefusal({ cell: entry.cell, treatment: entry.treatment, error })
      entry.refused = true
    }
  }

  function finish({ cell, treatment, played }: Entry): EvalRow {
    const inOrder = Array.from({ length: cell.n }, (_, j) => played.get(j)!)
    return rowOf({ cell, treatment, played: inOrder, run: runFacts(engine.info, options) })
  }
}

/** Whether it is the policy that says no: to a budget that is too small for it, to a model that it has no calibration of. */
function isRefusal(error: unknown, treatment: Treatment): error is KvasirError {
  return (
    !isFull(treatment) && error instanceof KvasirError && ['INVALID_ARGUMENT', 'NOT_SUPPORTED'].includes(error.code)
  )
}

/** A failure stops the rest, and is thrown when they have ended. */
async function inParallel<T>(
  work: readonly T[],
  workers: number,
  outer: AbortSignal | undefined,
  run: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const stop = new AbortController()
  const signal = outer ? AbortSignal.any([outer, stop.signal]) : stop.signal
  const queue = work.values()
  const failures: unknown[] = []
  const worker = async () => {
    // All workers draw from one iterator, so each item is taken once.
    for (const item of queue) {
      if (failures.length > 0) return
      try {
        await run(item, signal)
      } catch (error) {
        failures.push(error)
        stop.abort(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(workers, work.length) }, worker))
  if (failures.length > 0) throw failures[0]
}
