/** Random keys with random values. */
import { type Draw, Fresh } from '../draw.ts'
import { type Setting, type Turn, valueTurn } from '../example.ts'
import { SYMBOLS } from './frame.ts'

export interface Pair {
  readonly key: string
  readonly value: string
}

/** Keys and values all differ. UUIDs in the paper; of 6 to 8 symbols here, so that short contexts hold many. */
export class Pairs {
  readonly #r: Draw
  readonly #fresh = new Fresh()
  readonly #made = new Map<string, Pair>()

  constructor(r: Draw) {
    this.#r = r
  }

  /** `"key": "value"` */
  make(): string {
    const symbols = () => this.#fresh.of(() => this.#r.symbols(SYMBOLS, this.#r.whole(6, 8)))
    const pair = { key: symbols(), value: symbols() }
    const text = `"${pair.key}": "${pair.value}"`
    this.#made.set(text, pair)
    return text
  }

  /** The pair that a text of `make` is about. */
  of(text: string): Pair {
    return this.#made.get(text)!
  }
}

export function pairTurn({ key, value }: Pair, roomFor: Setting['roomFor']): Turn {
  return valueTurn(`Key: "${key}"\nThe value associated with the specified key is:`, value, roomFor)
}
