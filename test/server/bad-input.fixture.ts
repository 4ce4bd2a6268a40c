/** Malformed requests, as a table: name, route, body, the status that is due, and what the message must name. */

export interface BadRequest {
  readonly name: string
  readonly path: string
  /** Text is sent as it is, anything else as JSON. */
  readonly body: unknown
  readonly headers?: Readonly<Record<string, string>>
  readonly status?: number
  readonly says: RegExp
}

const CHAT = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'hi' }]

/** One field of a chat body, given wrong values. */
function field(name: string, values: readonly unknown[], says = new RegExp(`'${name}'|${name}`)): BadRequest[] {
  return values.map((value) => ({
    name: `${name}: ${shown(value)}`,
    path: CHAT,
    body: { messages, max_tokens: 1, [name]: value },
    says,
  }))
}

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 40 ? `${text.slice(0, 40)}... (${text.length})` : text
}

/** Raw JSON text in place of a value: numbers that no value can hold. */
const raw = (name: string, text: string, says: RegExp): BadRequest => ({
  ...{ name: `${name}: ${text.slice(0, 30)}`, path: CHAT, says },
  body: `{"messages":[{"role":"user","content":"hi"}],"max_tokens":1,"${name}":${text}}`,
})

const message = (bad: unknown, says: RegExp): BadRequest => ({
  ...{ name: `message ${shown(bad)}`, path: CHAT, body: { messages: [bad], max_tokens: 1 }, says },
})

const tool = (fn: unknown, says: RegExp = /tools/): BadRequest => ({
  ...{ name: `tool ${shown(fn)}`, path: CHAT, says },
  body: { messages, max_tokens: 1, tools: [{ type: 'function', function: fn }] },
})

const schema = (s: unknown, says: RegExp): BadRequest => ({
  ...{ name: `schema ${shown(s)}`, path: CHAT, says },
  body: { messages, max_tokens: 1, response_format: { type: 'json_schema', json_schema: { name: 'x', schema: s } } },
})

const nested = (depth: number, open: string, close: string, middle = '') =>
  open.repeat(depth) + middle + close.repeat(depth)

export const BAD_REQUESTS: readonly BadRequest[] = [
  // numbers
  ...field('temperature', [-0.1, 2.1, 1e300, '0.5', true, [], {}]),
  ...field('top_p', [-1, 1.01, '1', [0.5]]),
  ...field('n', [0, -1, 1.5, 257, 1e10, '2', true]),
  { name: 'n above maxSequences', path: CHAT, body: { messages, max_tokens: 1, n: 9 }, says: /samples|maxSequences/ },
  ...field('max_tokens', [0, -5, 1.5, 1e12, '10', {}]),
  ...field('max_completion_tokens', [0, -5, 0.1, '1', [1]]),
  ...field('presence_penalty', [-2.5, 3, '1']),
  ...field('frequency_penalty', [-2.5, 3, {}]),
  ...field('seed', [1.5, 'abc', 1e300, [1]]),
  ...field('top_logprobs', [-1, 21, 1.5, '3']),
  ...field('top_k', [-2, 1.5, 'x', 2 ** 40]),
  ...field('min_p', [-0.1, 1.5, '0']),
  ...field('typical_p', [-1, 2]),
  ...field('repetition_penalty', [0, -1, 101, 'x']),
  ...field('priority', ['high', 1e10, {}]),
  raw('temperature', 'NaN', /JSON/),
  raw('temperature', 'Infinity', /JSON/),
  raw('temperature', '-Infinity', /JSON/),
  raw('temperature', '1e999', /temperature/),
  raw('max_tokens', '1e999', /max_tokens/),
  raw('max_tokens', '9'.repeat(400), /max_tokens/),
  raw('seed', '-1e999', /seed/),
  raw('n', '0x10', /JSON/),
  raw('n', '01', /JSON/),
  raw('top_p', '.5', /JSON/),
  // flags and texts
  ...field('stream', ['true', 1, {}, []]),
  ...field('logprobs', ['yes', 1, []]),
  ...field('stream_options', ['x', [], { include_usage: 'yes' }, { nothing: 1 }], /stream_options/),
  ...field('stop', ['', [''], [1], 5, {}, Array.from({ length: 65 }, () => 'x')]),
  ...field('user', [5, {}, 'x'.repeat(5000)]),
  ...field('model', [5, {}, []]),
  { name: 'model that is not here', path: CHAT, body: { messages, model: 'gpt-9' }, status: 404, says: /gpt-9.*house/ },
  ...field(
    'logit_bias',
    [{ abc: 1 }, { '-1': 1 }, { 5: 'x' }, { 5: 101 }, { 5: -101 }, [], 'x', { 999999999: 1 }],
    /logit_?[bB]ias/,
  ),
  ...field('stop_token_ids', [['x'], [-1], 'x', [1.5]]),
  ...field('ignore_eos', ['x', 1]),
  { name: 'ignore_eos without a limit', path: CHAT, body: { messages, ignore_eos: true }, says: /max_tokens/ },
  { name: 'top_logprobs without logprobs', path: CHAT, body: { messages, top_logprobs: 2 }, says: /logprobs: true/ },
  ...field('grammar', [5, 'root ::= undefined-rule', 'no rules', '', 'root ::= (', 'root ::= "a'], /grammar/i),
  ...field('kvasir', ['x', { nothing: 1 }, { deadline_ms: -1 }, { deadline_ms: 'x' }, []], /kvasir/),
  ...field('cache_salt', [5, 'x'.repeat(2000)]),
  ...field('metadata', [5, { a: 1 }, []]),
  ...field('modalities', [['audio'], 'text', [1]]),
  ...field('chat_template_kwargs', [5, [], 'x']),
  { name: 'stream_options without stream', path: CHAT, body: { messages, stream_options: {} }, says: /stream: true/ },
  // unknown fields
  { name: 'unknown field', path: CHAT, body: { messages, frobnicate: 1 }, says: /Unknown parameter: 'frobnicate'/ },
  { name: 'misspelt field', path: CHAT, body: { messages, temprature: 1 }, says: /Did you mean 'temperature'/ },
  {
    name: '__proto__',
    path: CHAT,
    body: '{"messages":[{"role":"user","content":"x"}],"__proto__":{"x":1}}',
    says: /__proto__/,
  },
  { name: 'constructor', path: CHAT, body: { messages, constructor: { prototype: {} } }, says: /constructor/ },
  // messages
  { name: 'no messages', path: CHAT, body: {}, says: /Missing required parameter: 'messages'/ },
  { name: 'null messages', path: CHAT, body: { messages: null }, says: /messages/ },
  { name: 'empty messages', path: CHAT, body: { messages: [] }, says: /messages/ },
  { name: 'messages an object', path: CHAT, body: { messages: {} }, says: /messages/ },
  { name: 'messages a text', path: CHAT, body: { messages: 'hi' }, says: /messages/ },
  message(null, /messages\[0\]/),
  message('hi', /messages\[0\]/),
  message([], /messages\[0\]/),
  message({}, /role/),
  message({ role: 'user' }, /content/),
  message({ role: 'wizard', content: 'x' }, /role/),
  message({ role: 5, content: 'x' }, /role/),
  message({ role: 'user', content: 5 }, /content/),
  message({ role: 'user', content: {} }, /content/),
  message({ role: 'user', content: [{}] }, /content\[0\]/),
  message({ role: 'user', content: ['x'] }, /content\[0\]/),
  message({ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:,' } }] }, /text only/),
  message({ role: 'user', content: [{ type: 'input_audio' }] }, /text only/),
  message({ role: 'user', content: [{ type: 'text', text: 5 }] }, /text/),
  message({ role: 'assistant', tool_calls: 'x' }, /tool_calls/),
  message({ role: 'assistant', tool_calls: [{}] }, /tool_calls\[0\]/),
  message({ role: 'assistant', tool_calls: [{ function: { name: 'f' } }] }, /arguments/),
  message({ role: 'assistant', tool_calls: [{ function: { name: 5, arguments: '{}' } }] }, /name/),
  // tools
  ...field('tools', ['x', {}, [5], [{ type: 'web' }], [{ type: 'function' }]]),
  tool(null),
  tool({}),
  tool({ name: '' }),
  tool({ name: 'with space' }),
  tool({ name: 'x'.repeat(65) }),
  tool({ name: 'f', parameters: 5 }),
  tool({ name: 'f', parameters: { type: 'object', properties: { a: { type: 'nonsense' } } } }, /nonsense|type/),
  tool({ name: 'f', parameters: { type: 'object', properties: { a: { $ref: '#/nowhere' } } } }, /nowhere|\$ref/),
  {
    name: 'two tools of one name',
    path: CHAT,
    says: /f/,
    body: {
      messages,
      max_tokens: 1,
      tools: [
        { type: 'function', function: { name: 'f' } },
        { type: 'function', function: { name: 'f' } },
      ],
    },
  },
  {
    name: '129 tools',
    path: CHAT,
    says: /tools/,
    body: {
      messages,
      tools: Array.from({ length: 129 }, (_, i) => ({ type: 'function', function: { name: `f${i}` } })),
    },
  },
  ...field('tool_choice', ['maybe', 5, { type: 'function' }, { type: 'x' }], /tool_choice/),
  {
    name: 'tool_choice of no tool',
    path: CHAT,
    body: {
      messages,
      max_tokens: 1,
      tools: [{ type: 'function', function: { name: 'f' } }],
      tool_choice: { type: 'function', function: { name: 'g' } },
    },
    says: /g/,
  },
  { name: 'required without tools', path: CHAT, body: { messages, tool_choice: 'required' }, says: /tool_choice/ },
  ...field('parallel_tool_calls', ['x', 5]),
  // formats and schemas
  ...field(
    'response_format',
    [
      'json',
      5,
      {},
      { type: 'xml' },
      { type: 'json_schema' },
      { type: 'json_schema', json_schema: 5 },
      { type: 'text', more: 1 },
    ],
    /response_format/,
  ),
  schema({ type: 'nonsense' }, /nonsense|type/),
  schema({ $ref: '#/definitions/none' }, /none|\$ref/),
  schema({ type: 'string', pattern: '(' }, /pattern/),
  schema({ type: 'string', minLength: -1 }, /minLength/),
  schema({ type: 'string', minLength: 5, maxLength: 2 }, /minLength|maxLength/),
  schema({ type: 'array', minItems: 1e9 }, /repetitions/),
  schema({ not: {} }, /not/),
  schema({ enum: [] }, /enum/),
  schema({ allOf: [{ type: 'string' }, { type: 'number' }] }, /allOf|nothing|no value|string|type/),
  {
    name: 'schema bomb: 2^20 alternatives',
    path: CHAT,
    says: /schema|grammar|large|many|body|alternatives|deep/i,
    body: bomb(20),
  },
  {
    name: 'format and grammar',
    path: CHAT,
    says: /grammar/,
    body: { messages, grammar: 'root ::= "a"', response_format: { type: 'json_object' } },
  },
  // bodies
  { name: 'empty body', path: CHAT, body: '', says: /empty/ },
  { name: 'spaces', path: CHAT, body: '   ', says: /JSON/ },
  { name: 'not JSON', path: CHAT, body: 'hello', says: /JSON/ },
  { name: 'half of a JSON', path: CHAT, body: '{"messages":[{"role":"user","con', says: /JSON/ },
  { name: 'two JSONs', path: CHAT, body: '{}{}', says: /JSON/ },
  { name: 'trailing comma', path: CHAT, body: '{"messages":[],}', says: /JSON/ },
  { name: 'single quotes', path: CHAT, body: "{'messages':[]}", says: /JSON/ },
  { name: 'comments', path: CHAT, body: '{/* x */"messages":[]}', says: /JSON/ },
  { name: 'a number', path: CHAT, body: '5', says: /body/ },
  { name: 'a list', path: CHAT, body: '[]', says: /body/ },
  { name: 'null', path: CHAT, body: 'null', says: /body/ },
  { name: 'a text', path: CHAT, body: '"x"', says: /body/ },
  { name: 'NUL bytes', path: CHAT, body: '\0\0\0', says: /JSON/ },
  {
    name: 'control character in a text',
    path: CHAT,
    body: '{"messages":[{"role":"user","content":"a\u0001b"}]}',
    says: /JSON/,
  },
  { name: '100,000 brackets', path: CHAT, body: nested(100_000, '[', ']'), says: /deep/ },
  { name: '100,000 objects', path: CHAT, body: nested(100_000, '{"a":', '}', '1'), says: /deep/ },
  {
    name: '201 levels in a field',
    path: CHAT,
    body: `{"messages":[],"metadata":${nested(201, '[', ']')}}`,
    says: /deep/,
  },
  {
    name: 'too many messages',
    path: CHAT,
    body: { messages: Array.from({ length: 70_000 }, () => ({ role: 'user', content: '' })) },
    says: /messages/,
  },
  {
    name: 'a prompt beyond the context',
    path: CHAT,
    body: { messages: [{ role: 'user', content: 'word '.repeat(20_000) }] },
    says: /tokens.*context/s,
  },
  {
    name: 'a body beyond the limit',
    path: CHAT,
    status: 413,
    body: `{"messages":[{"role":"user","content":"${'x'.repeat(2 ** 21)}"}]}`,
    says: /larger/,
  },
  // headers
  {
    name: 'text/plain',
    path: CHAT,
    body: '{}',
    headers: { 'content-type': 'text/plain' },
    status: 415,
    says: /application\/json/,
  },
  {
    name: 'a form',
    path: CHAT,
    body: 'a=b',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    status: 415,
    says: /application\/json/,
  },
  {
    name: 'multipart',
    path: CHAT,
    body: '--x--',
    headers: { 'content-type': 'multipart/form-data; boundary=x' },
    status: 415,
    says: /application\/json/,
  },
  {
    name: 'a broken content type',
    path: CHAT,
    body: '{}',
    headers: { 'content-type': 'json' },
    status: 415,
    says: /application\/json/,
  },
  { name: 'gzip', path: CHAT, body: '{}', headers: { 'content-encoding': 'gzip' }, status: 415, says: /gzip/ },
  { name: 'utf-16', path: CHAT, body: '\ufeff{', headers: {}, says: /JSON/ },
  {
    name: 'a host that is not this machine',
    path: CHAT,
    body: { messages },
    headers: { host: 'evil.example' },
    status: 403,
    says: /evil\.example/,
  },
  // other routes
  { name: 'no such route', path: '/v1/nothing', body: {}, status: 404, says: /no POST \/v1\/nothing/ },
  { name: 'route of another case', path: '/V1/CHAT/COMPLETIONS', body: {}, status: 404, says: /no POST/ },
  { name: 'dots in the path', path: '/v1/../../etc/passwd', body: {}, status: 404, says: /no POST/ },
  { name: 'long URL', path: `/v1/chat/completions?${'x'.repeat(3000)}`, body: {}, status: 414, says: /URL/ },
  { name: 'tokenize nothing', path: '/tokenize', body: {}, says: /prompt/ },
  { name: 'tokenize both', path: '/tokenize', body: { prompt: 'a', messages }, says: /prompt/ },
  { name: 'tokenize a number', path: '/tokenize', body: { prompt: 5 }, says: /prompt/ },
  { name: 'detokenize text', path: '/detokenize', body: { tokens: 'abc' }, says: /tokens/ },
  { name: 'detokenize negative', path: '/detokenize', body: { tokens: [-1] }, says: /tokens/ },
  { name: 'detokenize a half', path: '/detokenize', body: { tokens: [1.5] }, says: /tokens/ },
  {
    name: 'detokenize outside the vocabulary',
    path: '/detokenize',
    body: { tokens: [10 ** 9] },
    says: /token|vocabulary/,
  },
]

/** A schema whose merged form doubles with each level. */
function bomb(levels: number): object {
  const $defs: Record<string, unknown> = { l0: { type: 'string' } }
  for (let i = 1; i <= levels; i++)
    $defs[`l${i}`] = {
      anyOf: [
        { $ref: `#/$defs/l${i - 1}` },
        { type: 'array', items: { $ref: `#/$defs/l${i - 1}` }, minItems: 1000, maxItems: 100_000 },
      ],
    }
  const s = { $ref: `#/$defs/l${levels}`, $defs }
  return { messages, max_tokens: 1, response_format: { type: 'json_schema', json_schema: { name: 'x', schema: s } } }
}
