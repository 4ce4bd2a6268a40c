/** Work that a scheduler planned, cut into runs of the executor. */
import type { Branch } from './branch.ts'

/** Rows of one branch in one run of the executor. */
export interface Piece {
  readonly branch: Branch
  readonly rows: number
  readonly padding: number
}

/** Cuts the work into runs of no more rows than a step should have: fcfs plans prompts as a whole. */
export function cutRuns(work: readonly Piece[], mostRows: number, mostPieces: number): Piece[][] {
  const runs: Piece[][] = [[]]
  let rows = 0
  for (const { branch, rows: all, padding } of work) {
    let left = all
    let pad = padding
    while (left + pad > 0) {
      const room = mostRows - rows
      if (room <= 0 || runs.at(-1)!.length >= mostPieces) {
        runs.push([])
        rows = 0
        continue
      }
      const take = Math.min(left, room)
      const takePad = Math.min(pad, room - take)
      runs.at(-1)!.push({ branch, rows: take, padding: takePad })
      rows += take + takePad
      left -= take
      pad -= takePad
      if (left + pad > 0) rows = mostRows
    }
  }
  return runs.filter((r) => r.length > 0)
}
