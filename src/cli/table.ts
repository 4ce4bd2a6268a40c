/** Tables that fill row by row: widths are settled before the first row is known. */

export interface Column<Row> {
  readonly title: string
  /** Characters; longer texts push the rest of their line. */
  readonly width: number
  readonly show: (row: Row) => string
  /** Text goes left, numbers right. Default: right. */
  readonly left?: boolean
}

export class Table<Row> {
  readonly #columns: readonly Column<Row>[]

  constructor(columns: readonly Column<Row>[]) {
    this.#columns = columns
  }

  get head(): string {
    return this.#line((c) => c.title)
  }

  row(row: Row): string {
    return this.#line((c) => c.show(row))
  }

  #line(text: (c: Column<Row>) => string): string {
    const cells = this.#columns.map((c) => {
      const width = Math.max(c.width, c.title.length)
      return c.left ? text(c).padEnd(width) : text(c).padStart(width)
    })
    return `${cells.join('  ').trimEnd()}\n`
  }
}
