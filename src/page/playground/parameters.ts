/** How answers are asked for. Fields hold what was typed; an empty one is left to the server. */
import { effect, signal } from '@preact/signals'
import { isObject, readStored, store } from '../storage.ts'

export interface Parameters {
  readonly system: string
  readonly temperature: string
  readonly topP: string
  readonly maxTokens: string
  readonly seed: string
  /** One text a line. */
  readonly stop: string
  readonly schema: string
}
export type ParameterName = keyof Parameters

const EMPTY: Parameters = { system: '', temperature: '', topP: '', maxTokens: '', seed: '', stop: '', schema: '' }
const KEY = 'kvasir.parameters'
const isParameters = (value: unknown): value is Partial<Parameters> =>
  isObject(value) && Object.values(value).every((v) => typeof v === 'string')

export const parameters = signal<Parameters>({ ...EMPTY, ...readStored<Partial<Parameters>>(KEY, {}, isParameters) })
effect(() => void store(KEY, parameters.value))

export function setParameter(name: ParameterName, value: string): void {
  parameters.value = { ...parameters.value, [name]: value }
}

export function resetParameters(): void {
  parameters.value = EMPTY
}

interface NumberField {
  readonly name: 'temperature' | 'topP' | 'maxTokens' | 'seed'
  readonly field: string
  readonly label: string
  readonly min: number
  readonly max: number
  readonly step: 'any' | 1
  /** What the server does without it. */
  readonly fallback: string
}

export const NUMBERS: readonly NumberField[] = [
  { name: 'temperature', field: 'temperature', label: 'Temperature', min: 0, max: 2, step: 'any', fallback: '0.8' },
  { name: 'topP', field: 'top_p', label: 'Top p', min: 0, max: 1, step: 'any', fallback: '0.95' },
  { name: 'maxTokens', field: 'max_tokens', label: 'Max tokens', min: 1, max: 2 ** 31 - 1, step: 1, fallback: 'all' },
  {
    ...{ name: 'seed', field: 'seed', label: 'Seed', step: 1, fallback: 'random' },
    ...{ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER },
  },
]

/** What is wrong with a field, or null. */
export function problemOf(name: ParameterName, values: Parameters): string | null {
  const text = values[name].trim()
  if (text === '') return null
  if (name === 'schema') return schemaProblem(text)
  const field = NUMBERS.find((f) => f.name === name)
  if (!field) return null
  const value = Number(text)
  const allowed = Number.isFinite(value) && value >= field.min && value <= field.max
  if (field.step === 1 && !(allowed && Number.isSafeInteger(value)))
    return name === 'maxTokens' ? 'a whole number from 1 up' : 'a whole number'
  return allowed ? null : `a number from ${field.min} to ${field.max}`
}

function schemaProblem(text: string): string | null {
  try {
    return isObject(JSON.parse(text)) ? null : 'a JSON object, such as {"type": "object"}'
  } catch (error) {
    return `JSON: ${(error as Error).message}`
  }
}

/** Label of the first field that is wrong. */
export function firstProblem(values: Parameters): string | null {
  const wrong = (Object.keys(EMPTY) as ParameterName[]).find((name) => problemOf(name, values) !== null)
  return wrong === undefined ? null : (NUMBERS.find(({ name }) => name === wrong)?.label ?? 'JSON schema')
}

/** Fields of the request's body, without messages. */
export function toBody(values: Parameters): Record<string, unknown> {
  const body: Record<string, unknown> = {}
  for (const { name, field } of NUMBERS) if (values[name].trim() !== '') body[field] = Number(values[name])
  const stop = values.stop.split('\n').filter((line) => line !== '')
  if (stop.length) body['stop'] = stop
  if (values.schema.trim() !== '') {
    const schema: unknown = JSON.parse(values.schema)
    body['response_format'] = { type: 'json_schema', json_schema: { name: 'answer', schema } }
  }
  return body
}
