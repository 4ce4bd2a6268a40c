/**
 * Functions and what they do, from one tree: a list of numbers is filtered, changed and summed up, step by step. The code
 * is Python, as in RepoQA; the description never uses the function's name, and no two bodies are equal.
 */
import { type Draw, Fresh } from '../draw.ts'
import type { Setting, Turn } from '../example.ts'

export interface GeneratedFunction {
  readonly name: string
  readonly code: string
  readonly description: string
}

/** A step's line of code, and ways to say it. */
interface Piece {
  readonly line: string
  readonly says: readonly string[]
}

const FILTERS: readonly ((n: number) => Piece)[] = [
  (n) => ({ line: `x > ${n}`, says: [`keeps only numbers greater than ${n}`, `drops whatever is not above ${n}`] }),
  (n) => ({ line: `x < ${n}`, says: [`keeps only numbers smaller than ${n}`, `drops whatever is not below ${n}`] }),
  (n) => ({ line: `x % ${n} == 0`, says: [`keeps the multiples of ${n}`, `drops what ${n} does not divide`] }),
  (n) => ({ line: `x != ${n}`, says: [`leaves out the number ${n}`, `ignores every ${n}`] }),
]
const CHANGES: readonly ((n: number) => Piece)[] = [
  (n) => ({ line: `x = x + ${n}`, says: [`adds ${n} to each`, `raises each by ${n}`] }),
  (n) => ({ line: `x = x * ${n}`, says: [`multiplies each by ${n}`, `takes each ${n} times`] }),
  (n) => ({ line: `x = abs(x - ${n})`, says: [`takes the distance of each from ${n}`] }),
  (n) => ({ line: `x = x // ${n}`, says: [`divides each by ${n} without remainder`] }),
]
const RESULTS: readonly Piece[] = [
  { line: 'sum(kept)', says: ['gives back the sum', 'returns the total'] },
  { line: 'len(kept)', says: ['gives back how many there are', 'returns their count'] },
  { line: 'max(kept)', says: ['gives back the largest', 'returns the highest one'] },
  { line: 'min(kept)', says: ['gives back the smallest', 'returns the lowest one'] },
  { line: 'sorted(kept)', says: ['gives them back in rising order', 'returns them sorted'] },
  { line: 'kept[::-1]', says: ['gives them back in reverse order', 'returns them from last to first'] },
]
const VERBS = 'tidy gather settle weigh trim merge rank probe shape blend scan fold'.split(' ')
const NOUNS = 'harbour orders rooms tickets parcels seats samples tides wages marks crates routes shifts points'.split(
  ' ',
)

/** One example's functions. */
export class Functions {
  readonly #r: Draw
  readonly #names = new Fresh()
  readonly #bodies = new Fresh()
  readonly #made = new Map<string, GeneratedFunction>()

  constructor(r: Draw) {
    this.#r = r
  }

  /** The code of a new one. */
  make(): string {
    const r = this.#r
    const name = this.#names.of(() => `${r.pick(VERBS)}_${r.pick(NOUNS)}_${r.symbols('abcdefghkmnprstuvw', 2)}`)
    let pieces: readonly Piece[] = []
    const body = this.#bodies.of(() => {
      const filter = r.pick(FILTERS)(r.whole(2, 99))
      const changes = r.sample(CHANGES, r.whole(1, 3)).map((change) => change(r.whole(2, 99)))
      const result = r.pick(RESULTS)
      pieces = [filter, ...changes, result]
      const lines = [`if ${filter.line}:`, ...changes.map((c) => `    ${c.line}`), '    kept.append(x)']
      return [
        '    kept = []',
        '    for x in values:',
        ...lines.map((l) => `        ${l}`),
        `    return ${result.line}`,
      ].join('\n')
    })
    const code = `def ${name}(values):\n${body}`
    const said = pieces.map((p) => r.pick(p.says))
    const description = `This function ${said.slice(0, -1).join(', then ')}, and ${said.at(-1)}.`
    this.#made.set(code, { name, code, description })
    return code
  }

  of(code: string): GeneratedFunction {
    return this.#made.get(code)!
  }
}

/** `all`: code of every function of the context. */
export function functionTurn(f: GeneratedFunction, all: readonly string[], roomFor: Setting['roomFor']): Turn {
  const question = `${f.description}\nRetrieve and repeat exactly the described function in a code block. Function:`
  const reference = `\`\`\`python\n${f.code}\n\`\`\``
  return { question, answers: [f.code], reference, metric: 'similarity', maxTokens: roomFor(reference), options: all }
}

/** A line between functions that does nothing: brings a file to its length. */
export const remark = (sentence: string): string => `# ${sentence}`
