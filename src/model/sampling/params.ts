/**
 * What a request may ask of the sampler. Names and defaults are llama.cpp's, in camelCase. Everything is checked here,
 * before native code sees it.
 */
import { randomInt } from 'node:crypto'
import { KvasirError, nearest } from '../../contract/errors.ts'
import { checkGrammar } from './gbnf.ts'
import { JSON_GRAMMAR, type JsonSchema, schemaToGrammar } from './json-schema.ts'

/** "Don't repeat yourself": punishes a token that would go on with a run of tokens that came before. */
export interface DryParams {
  /** 0 to 100; 0 is off. Default 0. The penalty is `multiplier * base ^ (run - allowedLength)`. */
  readonly multiplier?: number
  /** 1 to 100. Default 1.75. */
  readonly base?: number
  /** The longest run that costs nothing, 1 to 1000 tokens. Default 2. */
  readonly allowedLength?: number
  /** How far back to look, 1 to 1,000,000 tokens. Default 4096. */
  readonly penaltyLastN?: number
  /** Texts that end a run; up to 64 of at most 40 bytes. Default newline, `:`, `"`, `*`. */
  readonly sequenceBreakers?: readonly string[]
}

/** "Exclude top choices": now and then takes away all likely tokens but the least likely of them. */
export interface XtcParams {
  /** How often, 0 to 1; 0 is off. */
  readonly probability: number
  /** What counts as likely, 0 to 0.5. Default 0.1. */
  readonly threshold?: number
}

/** Mirostat 2.0: keeps the surprise of the text near a target. Takes the place of all truncations. */
export interface MirostatParams {
  /** Target surprise in bits, 0 to 100. Default 5. */
  readonly tau?: number
  /** Learning rate, 0 to 1. Default 0.1. */
  readonly eta?: number
}

export interface SamplingParams {
  /** 0, or 1e-6 to 100. 0 takes the most likely token and needs none of the truncations. Default 0.8. */
  readonly temperature?: number
  /** Keep the k most likely tokens; 0 is off. Default 40. */
  readonly topK?: number
  /** Keep the most likely tokens that together reach p, 0 to 1; 1 is off. Default 0.95. */
  readonly topP?: number
  /** Keep tokens at least this fraction as likely as the most likely one, 0 to 1; 0 is off. Default 0.05. */
  readonly minP?: number
  /** Keep the tokens of the most typical surprise that together exceed p, 0 to 1; 1 is off. Default 1. */
  readonly typicalP?: number
  /** Keep logits within n standard deviations of the highest, 0 to 100; 0 is off. Default 0. */
  readonly topNSigma?: number
  /** Divides positive logits of tokens seen lately, multiplies negative ones; 0.01 to 100; 1 is off. Default 1. */
  readonly repeatPenalty?: number
  /** What "lately" means for the three penalties, 0 to 1,000,000 tokens; 0 is off. Default 64. */
  readonly repeatLastN?: number
  /** Subtracted once for each time a token was seen lately, -100 to 100. Default 0. */
  readonly frequencyPenalty?: number
  /** Subtracted once if a token was seen lately, -100 to 100. Default 0. */
  readonly presencePenalty?: number
  readonly dry?: DryParams
  readonly xtc?: XtcParams
  readonly mirostat?: MirostatParams
  /** Added to logits, by token id: -10,000 to 10,000, or -Infinity to forbid the token. */
  readonly logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>
  /** 0 to 2^32 - 2. Default: a random one; the sampler's `seed` tells which. */
  readonly seed?: number
  /** The answer must match this GBNF grammar, from its rule `root`. At most one of grammar, jsonSchema and json. */
  readonly grammar?: string
  /** The answer must be JSON that satisfies this schema. */
  readonly jsonSchema?: JsonSchema
  /** true: the answer must be a JSON object. */
  readonly json?: boolean
  /**
   * Report log-probabilities: of the token taken, and of this many most likely ones, 0 to 20. Computed from the
   * model's own logits, before temperature, penalties and grammar, as servers of OpenAI's kind do. Default: none.
   */
  readonly logprobs?: number
}

/** Every field settled. The three ways to ask for a grammar have become one text. */
export interface Sampling {
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly minP: number
  readonly typicalP: number
  readonly topNSigma: number
  readonly repeatPenalty: number
  readonly repeatLastN: number
  readonly frequencyPenalty: number
  readonly presencePenalty: number
  readonly dry: Required<DryParams>
  readonly xtc: Required<XtcParams> | undefined
  readonly mirostat: Required<MirostatParams> | undefined
  readonly logitBias: ReadonlyMap<number, number>
  readonly seed: number
  readonly grammar: string | undefined
  readonly logprobs: number | undefined
}

interface NumberRule {
  readonly from: number
  readonly to: number
  readonly whole?: boolean
  readonly fallback: number
}

const MANY = 1_000_000
const NUMBERS = {
  temperature: { from: 0, to: 100, fallback: 0.8 },
  topK: { from: 0, to: 2 ** 31 - 1, whole: true, fallback: 40 },
  topP: { from: 0, to: 1, fallback: 0.95 },
  minP: { from: 0, to: 1, fallback: 0.05 },
  typicalP: { from: 0, to: 1, fallback: 1 },
  topNSigma: { from: 0, to: 100, fallback: 0 },
  repeatPenalty: { from: 0.01, to: 100, fallback: 1 },
  repeatLastN: { from: 0, to: MANY, whole: true, fallback: 64 },
  frequencyPenalty: { from: -100, to: 100, fallback: 0 },
  presencePenalty: { from: -100, to: 100, fallback: 0 },
} as const satisfies Record<string, NumberRule>
const DRY = {
  multiplier: { from: 0, to: 100, fallback: 0 },
  base: { from: 1, to: 100, fallback: 1.75 },
  allowedLength: { from: 1, to: 1000, whole: true, fallback: 2 },
  penaltyLastN: { from: 1, to: MANY, whole: true, fallback: 4096 },
} as const satisfies Record<string, NumberRule>
const XTC = {
  probability: { from: 0, to: 1, fallback: 0 },
  threshold: { from: 0, to: 0.5, fallback: 0.1 },
} as const satisfies Record<string, NumberRule>
const MIROSTAT = {
  tau: { from: 0, to: 100, fallback: 5 },
  eta: { from: 0, to: 1, fallback: 0.1 },
} as const satisfies Record<string, NumberRule>
const OTHERS = ['dry', 'xtc', 'mirostat', 'logitBias', 'seed', 'grammar', 'jsonSchema', 'json', 'logprobs'] as const
const BREAKERS = ['\n', ':', '"', '*'] as const

/** libllama reads 2^32 - 1 as "choose one for me". */
const SEED: NumberRule = { from: 0, to: 2 ** 32 - 2, whole: true, fallback: 0 }
const LOGPROBS: NumberRule = { from: 0, to: 20, whole: true, fallback: 0 }
const BIAS: NumberRule = { from: -10_000, to: 10_000, fallback: 0 }

const settled = new WeakMap<object, number>()

/**
 * The complete, frozen form of `params`. What it gave once, it gives back as it is.
 *
 * @throws KvasirError INVALID_ARGUMENT naming the field, or GRAMMAR_INVALID for a grammar or schema that cannot be used.
 */
export function checkSampling(params: SamplingParams | Sampling, vocabSize: number): Sampling {
  if (settled.get(params) === vocabSize) return params as Sampling
  const given: Partial<Record<string, unknown>> = { ...asObject(params, 'sampling') }
  checkNames(given, [...Object.keys(NUMBERS), ...OTHERS], '')
  const numbers = readNumbers(given, NUMBERS, '')
  if (numbers.temperature > 0 && numbers.temperature < 1e-6)
    fail('temperature', numbers.temperature, '0, or a number from 1e-6 to 100')
  const sampling: Sampling = Object.freeze({
    ...numbers,
    dry: readDry(given['dry']),
    xtc: readPart(given['xtc'], XTC, 'xtc'),
    mirostat: readPart(given['mirostat'], MIROSTAT, 'mirostat'),
    logitBias: readBias(given['logitBias'], vocabSize),
    seed: given['seed'] === undefined ? randomInt(SEED.to + 1) : readNumber(given['seed'], SEED, 'seed'),
    grammar: readGrammar(given, vocabSize),
    logprobs: given['logprobs'] === undefined ? undefined : readNumber(given['logprobs'], LOGPROBS, 'logprobs'),
  })
  settled.set(sampling, vocabSize)
  return sampling
}

function readDry(value: unknown): Required<DryParams> {
  const given = asObject(value ?? {}, 'dry')
  checkNames(given, [...Object.keys(DRY), 'sequenceBreakers'], 'dry.')
  const breakers = given['sequenceBreakers'] ?? BREAKERS
  if (!Array.isArray(breakers) || breakers.length > 64) fail('dry.sequenceBreakers', breakers, 'up to 64 strings')
  for (const text of breakers as unknown[])
    if (typeof text !== 'string' || text === '' || text.includes('\0') || Buffer.byteLength(text) > 40)
      fail('dry.sequenceBreakers', text, 'strings of 1 to 40 bytes without NUL')
  return Object.freeze({ ...readNumbers(given, DRY, 'dry.'), sequenceBreakers: [...(breakers as string[])] })
}

function readPart<R extends Record<string, NumberRule>>(value: unknown, rules: R, name: string) {
  if (value === undefined) return undefined
  const given = asObject(value, name)
  checkNames(given, Object.keys(rules), `${name}.`)
  return Object.freeze(readNumbers(given, rules, `${name}.`))
}

function readBias(value: unknown, vocabSize: number): ReadonlyMap<number, number> {
  if (value === undefined) return new Map()
  const pairs = value instanceof Map ? [...value] : Object.entries(asObject(value, 'logitBias'))
  return new Map(
    pairs.map(([key, bias]: [unknown, unknown]) => {
      const token = typeof key === 'string' && /^\d+$/.test(key) ? Number(key) : key
      if (typeof token !== 'number' || !Number.isInteger(token) || token < 0 || token >= vocabSize)
        fail('logitBias', key, `token ids from 0 to ${vocabSize - 1} as keys`)
      return [token as number, bias === -Infinity ? -Infinity : readNumber(bias, BIAS, `logitBias[${token}]`)]
    }),
  )
}

function readGrammar(given: Partial<Record<string, unknown>>, vocabSize: number): string | undefined {
  const { grammar, jsonSchema, json } = given
  if (json !== undefined && typeof json !== 'boolean') fail('json', json, 'true or false')
  const asked = [grammar !== undefined && 'grammar', jsonSchema !== undefined && 'jsonSchema', json === true && 'json']
  const names = asked.filter((name) => name !== false)
  if (names.length > 1) fail(names.join(' and '), 'several', 'at most one of grammar, jsonSchema and json')
  if (json) return JSON_GRAMMAR
  if (jsonSchema !== undefined) return schemaToGrammar(jsonSchema as JsonSchema)
  if (grammar === undefined) return undefined
  if (typeof grammar !== 'string') fail('grammar', grammar, 'GBNF text')
  checkGrammar(grammar as string, vocabSize)
  return grammar as string
}

function readNumbers<R extends Record<string, NumberRule>>(
  given: Partial<Record<string, unknown>>,
  rules: R,
  prefix: string,
): { [K in keyof R]: number } {
  const read = Object.entries(rules).map(([name, rule]) => {
    const value = given[name]
    return [name, value === undefined ? rule.fallback : readNumber(value, rule, prefix + name)]
  })
  return Object.fromEntries(read)
}

function readNumber(value: unknown, rule: NumberRule, name: string): number {
  const { from, to, whole = false } = rule
  if (typeof value !== 'number' || !(value >= from && value <= to) || (whole && !Number.isInteger(value)))
    fail(name, value, `${whole ? 'whole numbers' : 'numbers'} from ${from} to ${to}`)
  return value as number
}

function checkNames(given: object, known: readonly string[], prefix: string): void {
  for (const name of Object.keys(given)) {
    if (known.includes(name)) continue
    const near = nearest(name, known)
    const mend = near ? `Did you mean ${prefix}${near}?` : `Known are ${known.join(', ')}.`
    throw new KvasirError('INVALID_ARGUMENT', `no sampling parameter is called ${prefix}${name}. ${mend}`, {
      field: prefix + name,
    })
  }
}

function asObject(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) fail(name, value, 'an object')
  return value as Record<string, unknown>
}

function fail(field: string, value: unknown, allowed: string): never {
  const shown = typeof value === 'string' ? JSON.stringify(value) : String(value)
  throw new KvasirError('INVALID_ARGUMENT', `${field} is ${shown}; allowed: ${allowed}`, { field, value, allowed })
}
