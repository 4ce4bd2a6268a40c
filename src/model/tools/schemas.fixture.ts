/** Random schemas of arguments, of the kinds that tools have, for tests. */
import fc from 'fast-check'
import type { SchemaObject } from '../sampling/schema-merge.ts'

const key = fc.oneof(
  fc.constantFrom('city', 'unit', 'x"y', 'né', 'a b', 'id'),
  fc.string({ minLength: 1, maxLength: 4 }),
)
const range = fc.tuple(fc.integer({ min: -50, max: 200 }), fc.nat(99))

const { schema } = fc.letrec<{ schema: SchemaObject; leaf: SchemaObject; object: SchemaObject }>((tie) => ({
  leaf: fc.oneof(
    fc.constantFrom<SchemaObject>(
      { type: 'boolean' },
      { type: ['integer', 'null'] },
      { type: 'number', minimum: 0.25 },
      { type: 'string', pattern: '^[a-z]{2,4}-\\d$' },
      { type: 'string', format: 'date' },
      { enum: ['<tool_call>', '}}', 'a"b', '\\', null, 3] },
      { const: '</tool_call>\n[TOOL_CALLS]' },
    ),
    range.map(([minimum, width]) => ({ type: 'integer', minimum, maximum: minimum + width })),
    fc.nat(5).map((maxLength) => ({ type: 'string', description: 'short', maxLength })),
  ),
  object: fc
    .tuple(
      fc.uniqueArray(fc.tuple(key, tie('schema'), fc.boolean()), { maxLength: 4, selector: ([name]) => name }),
      fc.nat(2),
    )
    .map(([members, more]) => ({
      type: 'object',
      properties: Object.fromEntries(members.map(([name, inner]) => [name, inner])),
      required: members.filter(([, , needed]) => needed).map(([name]) => name),
      ...(more === 1 && { additionalProperties: false }),
      ...(more === 2 && { additionalProperties: { type: 'integer', minimum: 0 } }),
    })),
  schema: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    tie('leaf'),
    tie('object'),
    fc.tuple(tie('schema'), fc.nat(2)).map(([items, minItems]) => ({ type: 'array', items, minItems, maxItems: 3 })),
    fc.tuple(tie('leaf'), tie('leaf')).map((anyOf) => ({ anyOf })),
    fc.constant({ type: 'array', items: { $ref: '#/$defs/point' }, maxItems: 2 }),
  ),
}))

const point = { type: 'object', properties: { x: { type: 'integer' } }, required: ['x'], additionalProperties: false }

/** An object with a few properties; `#/$defs/point` is there for references. */
export const parameters: fc.Arbitrary<SchemaObject> = fc
  .tuple(
    fc.uniqueArray(fc.tuple(key, schema, fc.boolean()), { minLength: 1, maxLength: 4, selector: ([name]) => name }),
    fc.boolean(),
  )
  .map(([members, closed]) => ({
    type: 'object',
    $defs: { point },
    properties: Object.fromEntries(members.map(([name, inner]) => [name, inner])),
    required: members.filter(([, , needed]) => needed).map(([name]) => name),
    ...(closed && { additionalProperties: false }),
  }))
