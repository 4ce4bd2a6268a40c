/** A file of rows, a JSON object a line: what is in it need not be run again. */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { KvasirError } from '../contract/errors.ts'
import type { Cell } from './cells.ts'
import type { EvalRow } from './evaluate.ts'

export class Results {
  readonly #path: string
  readonly #model: string
  readonly #rows = new Map<string, EvalRow>()

  /**
   * @param model rows of others in the same file are let be.
   * @throws KvasirError INVALID_ARGUMENT for files that hold something else, or cannot be read or written.
   */
  constructor(path: string, model: string) {
    this.#path = path
    this.#model = model
    const text = this.#try(() => (existsSync(path) ? readFileSync(path, 'utf8') : ''))
    // A run that was killed while it wrote leaves half a line, which the next row must not be joined to.
    const whole = text.slice(0, text.lastIndexOf('\n') + 1)
    for (const [i, line] of whole.split('\n').entries()) {
      if (line.trim() === '') continue
      const row = parse(line, `${path}:${i + 1}`)
      this.#rows.set(keyOf(row.model, row), row)
    }
    this.#try(() => writeFileSync(path, whole))
  }

  /** The row of a cell that was run with the same model, mode, seed and number of examples. */
  find(cell: Cell): EvalRow | undefined {
    return this.#rows.get(keyOf(this.#model, cell))
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

const keyOf = (model: string, { task, length, mode, history, seed, n }: Key) =>
  JSON.stringify([model, task, length, mode, history, seed, n])

function parse(line: string, where: string): EvalRow {
  let row: Partial<EvalRow> | null = null
  try {
    row = JSON.parse(line)
  } catch {
    // Said below.
  }
  if (typeof row?.task !== 'string' || typeof row.accuracy !== 'number' || typeof row.model !== 'string')
    throw new KvasirError('INVALID_ARGUMENT', `${where}: not a row of kvasir eval. Name another file`, { where })
  return row as EvalRow
}
