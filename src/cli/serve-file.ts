/** The configuration file of `kvasir serve`: JSON, with the settings' keys; checked before anything of it is used. */
import { existsSync } from 'node:fs'
import Type, { type TSchema } from 'typebox'
import { Errors } from 'typebox/value'
import { KvasirError, nearest } from '../contract/errors.ts'
import { readText } from './options.ts'
import { MODEL_NAME } from './serve-models.ts'
import { isSecret, type Setting } from './serve-settings.ts'

/** Taken when it is there and no other one is named. */
export const DEFAULT_FILE = 'kvasir.json'

type Values = Readonly<Record<string, unknown>>
/** `[NAME=]MODEL`, or an object with the model's own settings. */
export type FileModel = string | (Values & { readonly name?: string; readonly model: string })

export interface ConfigFile {
  readonly path: string
  /** By key, as they stand in the file. */
  readonly values: Values
  readonly models: readonly FileModel[] | null
}

/** All settings may stand at the top; those of an engine then hold for each model that has none of its own. */
export function fileSchema(server: readonly Setting[], model: readonly Setting[]): TSchema {
  const fields = (settings: readonly Setting[]) =>
    Object.fromEntries(settings.map(({ key, schema }) => [key, Type.Optional(schema)]))
  const one = Type.Object(
    {
      name: Type.Optional(
        Type.String({ pattern: MODEL_NAME.source, description: 'a name of letters, digits and . _ : / @ -' }),
      ),
      model: Type.String({ minLength: 1, description: 'a GGUF file, hf:OWNER/REPO[:FILE], or house' }),
      ...fields(model),
    },
    { additionalProperties: false },
  )
  const models = Type.Array(
    Type.Union([Type.String(), one], { description: '"[NAME=]MODEL", or an object with "model"' }),
    {
      minItems: 1,
      description: 'a list of at least one model',
    },
  )
  return Type.Object(
    { models: Type.Optional(models), ...fields(server), ...fields(model) },
    { additionalProperties: false, description: 'an object' },
  )
}

/** Null when none is named and there is no {@link DEFAULT_FILE}. @throws KvasirError INVALID_ARGUMENT */
export function readConfigFile(
  named: { readonly path: string; readonly by: string } | null,
  schema: TSchema,
): ConfigFile | null {
  if (!named && !existsSync(DEFAULT_FILE)) return null
  const path = named?.path ?? DEFAULT_FILE
  return parseConfigFile(path, readText(path, named?.by ?? DEFAULT_FILE), schema)
}

/** @throws KvasirError INVALID_ARGUMENT that names the place in the file, what is there and what it must be */
export function parseConfigFile(path: string, text: string, schema: TSchema): ConfigFile {
  let content: unknown
  try {
    content = JSON.parse(text.replace(/^\ufeff/, ''))
  } catch (error) {
    throw new KvasirError('INVALID_ARGUMENT', `${path} is not JSON: ${(error as Error).message}`, { file: path }, error)
  }
  const complaint = complaintOf(schema, content)
  if (complaint) throw new KvasirError('INVALID_ARGUMENT', `${path}: ${complaint}`, { file: path })
  const { models = null, ...values } = content as Values & { readonly models?: readonly FileModel[] }
  return { path, values, models }
}

/** What is wrong first: keys that do not exist, then keys that are missing, then values of the wrong kind. */
function complaintOf(schema: TSchema, content: unknown): string | null {
  const errors = Errors(schema, content)
  const at = (pointer: string) => pointer.split('/').slice(1)
  for (const { keyword, params, instancePath } of errors)
    if (keyword === 'additionalProperties') {
      const path = at(instancePath)
      const [key] = (params as { readonly additionalProperties: readonly string[] }).additionalProperties
      const known = branches(schemaAt(schema, path)).flatMap((n) => Object.keys(n.properties ?? {}))
      const guess = nearest(key!, known)
      const mend = guess ? `did you mean "${guess}"?` : `known are ${known.join(', ')}`
      return `there is no setting "${typed([...path, key!])}"; ${mend}`
    }
  for (const { keyword, params, instancePath } of errors)
    if (keyword === 'required') {
      const [key] = (params as { readonly requiredProperties: readonly string[] }).requiredProperties
      return `"${typed([...at(instancePath), key!])}" is missing`
    }
  // Every branch of a union complains: the deepest complaint is the one that knows what was meant.
  const [path] = errors.map((e) => at(e.instancePath)).sort((a, b) => b.length - a.length)
  if (!path) return null
  const value = path.reduce<unknown>((v, key) => (v as Values)[key], content)
  const got = isSecret(path[0] ?? '') ? 'something else' : JSON.stringify(value)
  const { description } = schemaAt(schema, path) as { readonly description?: string }
  return `${path.length ? `"${typed(path)}"` : 'it'} is ${got}; it must be ${description}`
}

/** `['models', '0', 'context']` to `models[0].context` */
function typed(path: readonly string[]): string {
  return path.reduce((out, key) => (/^\d+$/.test(key) ? `${out}[${key}]` : out ? `${out}.${key}` : key), '')
}

/** The parts of schemas that are used here. */
type Node = TSchema & {
  readonly properties?: Readonly<Record<string, Node>>
  readonly items?: Node
  readonly anyOf?: readonly Node[]
}

/** Itself and what it may be instead. */
function branches(node: Node): readonly Node[] {
  return [node, ...(node.anyOf ?? [])]
}

function schemaAt(schema: Node, path: readonly string[]): Node {
  const inner = (node: Node, key: string) => branches(node).flatMap((n) => n.items ?? n.properties?.[key] ?? [])[0]!
  return path.reduce(inner, schema)
}
