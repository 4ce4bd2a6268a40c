/**
 * Schemas of tools come from elsewhere and say more than a grammar can hold. Unless a tool is `strict`, what cannot be
 * expressed is left out: the arguments still parse and have the right names and types; the rest is for the tool to check.
 */
import { KvasirError } from '../../contract/errors.ts'
import { addSchema, type JsonSchema } from '../sampling/json-schema.ts'
import { RuleSet } from '../sampling/schema-rules.ts'

/** Keywords that only narrow: without one of them, more is allowed. */
const NARROWING = new Set([
  ...[
    'uniqueItems',
    'format',
    'pattern',
    'contains',
    'minContains',
    'maxContains',
    'multipleOf',
    'not',
    'if',
    'then',
    'else',
  ],
  ...['propertyNames', 'patternProperties', 'minProperties', 'maxProperties', 'dependentRequired', 'dependentSchemas'],
  ...[
    'dependencies',
    'unevaluatedProperties',
    'unevaluatedItems',
    'contentEncoding',
    'contentMediaType',
    'contentSchema',
  ],
])
/** Keywords whose value is a schema, a list of schemas, or schemas by name. */
const SCHEMAS = new Set(['items', 'additionalProperties', 'additionalItems', 'prefixItems', 'anyOf', 'oneOf', 'allOf'])
const BY_NAME = new Set(['properties', '$defs', 'definitions'])

/** `schema` without what no grammar can be made for. What is wrong, rather than too narrow, stays, and is refused later. */
export function loosened(schema: JsonSchema): JsonSchema {
  let loose = schema
  for (const _ of NARROWING) {
    const keyword = refusedKeyword(loose)
    if (keyword === null || !NARROWING.has(keyword)) return loose
    loose = without(loose, keyword) as JsonSchema
  }
  return loose
}

function refusedKeyword(schema: JsonSchema): string | null {
  try {
    addSchema(schema, new RuleSet())
    return null
  } catch (error) {
    const keyword = error instanceof KvasirError ? error.details['keyword'] : null
    return typeof keyword === 'string' ? keyword : null
  }
}

function without(schema: unknown, keyword: string): unknown {
  if (Array.isArray(schema)) return schema.map((s) => without(s, keyword))
  if (typeof schema !== 'object' || schema === null) return schema
  const entries = Object.entries(schema).filter(([key]) => key !== keyword)
  return Object.fromEntries(
    entries.map(([key, value]) => {
      if (SCHEMAS.has(key)) return [key, without(value, keyword)]
      if (!BY_NAME.has(key) || typeof value !== 'object' || value === null) return [key, value]
      return [key, Object.fromEntries(Object.entries(value).map(([name, s]) => [name, without(s, keyword)]))]
    }),
  )
}
