/** A file of rows, a JSON object a line: what is in it need not be run again. */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { KvasirError } from '../contract/errors.ts'
import type { Cell } from './cells.ts'
import type { EvalRow, RunFacts } from './row.ts'
import type { Treatment } from './treatments.ts'

export class Results {
  readonly #path: string
  readonly #run: RunFacts
  readonly #rows = new Map<string, EvalRow>()

  /**
   * @param run rows of other models, cache types and ways to ask in the same file are let be.
   * @throws KvasirError INVALID_ARGUMENT for files that hold something else, or cannot be read or written.
   */
  constructor(path: string, run: RunFacts) {
    this.#path = path
    this.#run = run
    const text = this.#try(() => (existsSync(path) ? readFileSync(path, 'utf8') : ''))
    // A run that was killed while it wrote leaves half a line, which the next row must not be joined to.
    const whole = text.slice(0, text.lastIndexOf('\n') + 1)
    for (const row of parseRows(whole, path)) this.#rows.set(keyOfRow(row), row)
    this.#try(() => writeFileSync(path, whole))
  }

  /** The row of a cell that was run in the same way, with the same treatment, mode, seed and number of examples. */
  find(cell: Cell, treatment: Treatment): EvalRow | undefined {
    return this.#rows.get(keyOf(this.#run, cell, treatment))
  }

  add(row: EvalRow): void {
    this.#try(() => appendFileSync(this.#path, `${JSON.stringify(row)}\n`))
  }

  #try<T>(io: () => T): T {
    try {
      return io()
    } catch (cause) {
      const message = `${this.#path}: ${(cause as Error).message}`
      throw new KvasirError('INVALID_ARGUMENT', message, { file: this.#path }, cause)
    }
  }
}

type Key = Pick<EvalRow, 'task' | 'length' | 'mode' | 'history' | 'seed' | 'n'>

const keyOf = (
  { model, model_file, type_k, type_v, raw, shared_prompts }: RunFacts,
  { task, length, mode, history, seed, n }: Key,
  { policy, budget, compressAt }: Treatment,
) =>
  JSON.stringify([
    ...[model, model_file, type_k, type_v, raw, shared_prompts],
    ...[task, length, mode, history, seed, n, policy, budget, compressAt],
  ])

const keyOfRow = (row: EvalRow) => keyOf(row, row, { ...row, compressAt: row.compress_at })

/** All rows of some files, the last of those that were run twice. @throws KvasirError INVALID_ARGUMENT */
export function readRows(paths: readonly string[]): EvalRow[] {
  const rows = paths.flatMap((path) => {
    let text: string
    try {
      text = readFileSync(path, 'utf8')
    } catch (cause) {
      throw new KvasirError('INVALID_ARGUMENT', `${path}: ${(cause as Error).message}`, { file: path }, cause)
    }
    return parseRows(text, path)
  })
  return [...new Map(rows.map((row) => [keyOfRow(row), row])).values()]
}

function parseRows(text: string, path: string): EvalRow[] {
  return text.split('\n').flatMap((line, i) => (line.trim() === '' ? [] : [parse(line, `${path}:${i + 1}`)]))
}

/** Rows that do not say all of this are of older versions: what they do not say cannot be compared. */
const TEXTS = ['task', 'policy', 'mode', 'model', 'model_file', 'type_k', 'type_v'] as const

function parse(line: string, where: string): EvalRow {
  let row: Partial<EvalRow> | null = null
  try {
    row = JSON.parse(line)
  } catch {
    // Said below.
  }
  const isNumber = (x: unknown) => typeof x === 'number' || x === null
  const isRow = row !== null && TEXTS.every((field) => typeof row?.[field] === 'string') && isNumber(row.accuracy)
  if (!isRow)
    throw new KvasirError('INVALID_ARGUMENT', `${where}: not a row of kvasir eval. Name another file`, { where })
  return row as EvalRow
}
