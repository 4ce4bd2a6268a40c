import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Command } from 'commander'
import { addServe } from './serve.ts'
import {
  apiKeysOf,
  describeConfig,
  engineOptionsOf,
  type Found,
  givenOf,
  readConfig,
  resolveConfig,
  type ServeConfig,
  typedFlags,
  valuesOf,
} from './serve-config.ts'
import { fileSchema, parseConfigFile } from './serve-file.ts'
import { modelSettings, serverSettings, toServerOptions } from './serve-settings.ts'

const SCHEMA = fileSchema(serverSettings(), modelSettings())

/** Flags as the real command parses them. */
function flagsOf(args: readonly string[]): Record<string, unknown> {
  const program = new Command().exitOverride()
  addServe(program)
  const command = program.commands[0]!.exitOverride().configureOutput({ writeErr: () => {} })
  let flags = {}
  command.action((_models, _flags, self: Command) => {
    flags = typedFlags(self)
  })
  command.parse(args, { from: 'user' })
  return flags
}

interface Said {
  readonly models?: readonly string[]
  readonly args?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  readonly file?: object
}

function resolve({ models = [], args = [], env = {}, file }: Said): ServeConfig {
  const parsed = file ? parseConfigFile('c.json', JSON.stringify(file), SCHEMA) : null
  const none: Found = { value: null, source: 'default', at: null }
  return { ...resolveConfig({ models, flags: flagsOf(args), env, file: parsed }), file: none }
}

/** For each setting: text and value for a flag, for a variable, and value in the file and what it means. */
const SAMPLES: Readonly<Record<string, readonly [string | null, unknown, string, unknown, unknown, unknown]>> = {
  host: ['::1', '::1', '127.0.0.2', '127.0.0.2', '10.0.0.1', '10.0.0.1'],
  port: ['1', 1, '2', 2, 3, 3],
  apiKey: ['a,b', ['a', 'b'], 'c, d', ['c', 'd'], ['e,f'], ['e,f']],
  allowedHost: ['a', ['a'], 'b', ['b'], 'c,d', ['c', 'd']],
  corsOrigin: ['http://a', ['http://a'], '*', ['*'], ['http://b'], ['http://b']],
  bodyLimit: ['1MiB', 2 ** 20, '2MB', 2e6, 4096, 4096],
  receiveTimeout: ['1s', 1000, '500ms', 500, '2m', 120_000],
  answerTimeout: ['1s', 1000, '500ms', 500, '2m', 120_000],
  idleUnload: ['1s', 1000, '500ms', 500, '2m', 120_000],
  preload: [null, true, 'false', false, true, true],
  drain: ['0s', 0, '500ms', 500, '2m', 120_000],
  metricsCompat: ['vllm', 'vllm', 'vllm', 'vllm', 'vllm', 'vllm'],
  page: [null, false, 'TRUE', true, false, false],
  otlpEndpoint: ['http://a', 'http://a', 'http://b', 'http://b', 'http://c', 'http://c'],
  apiKeyFile: ['a', 'a', 'b', 'b', 'c', 'c'],
  insecure: [null, true, '0', false, true, true],
  logLevel: ['trace', 'trace', 'debug', 'debug', 'silent', 'silent'],
  logFormat: ['text', 'text', 'json', 'json', 'text', 'text'],
  context: ['1', 1, '2', 2, 3, 3],
  cacheTypeK: ['q8_0', 'q8_0', 'f32', 'f32', 'q4_0', 'q4_0'],
  cacheTypeV: ['q8_0', 'q8_0', 'f32', 'f32', 'q4_0', 'q4_0'],
  kvMemory: ['1GiB', 2 ** 30, '2GB', 2e9, '64MiB', 2 ** 26],
  tokenBudget: ['1', 1, '2', 2, 3, 3],
  threads: ['1', 1, '2', 2, 3, 3],
  device: ['a', 'a', 'b', 'b', 'c', 'c'],
  lowering: ['flash', 'flash', 'grouped', 'grouped', 'auto', 'auto'],
  diskCache: ['a', 'a', 'b', 'b', 'c', 'c'],
  diskCacheBytes: ['1GiB', 2 ** 30, '2GB', 2e9, 5, 5],
  scheduler: ['fcfs', 'fcfs', 'sarathi', 'sarathi', 'prepacking', 'prepacking'],
  maxSequences: ['1', 1, '2', 2, 3, 3],
  maxWaiting: ['1', 1, '2', 2, 3, 3],
  policyModule: ['a', ['a'], 'b,c', ['b', 'c'], ['d'], ['d']],
  hostCache: ['1MiB', 2 ** 20, '2MB', 2e6, 0, 0],
}

describe('flags come before variables, variables before the file, the file before defaults', () => {
  const settings = [...serverSettings(), ...modelSettings()]

  it('for every setting there is a sample', () => {
    assert.deepEqual(Object.keys(SAMPLES).sort(), settings.map(({ key }) => key).sort())
  })

  for (const { key, option, env: names, fallback } of settings)
    it(key, () => {
      const [flagText, flag, envText, env, inFile, file] = SAMPLES[key]!
      const name = `KVASIR_${key.replace(/[A-Z]/g, '_$&').toUpperCase()}`
      assert.equal(names[0], name)
      const at = (said: Said) => {
        const { settings: own, models } = resolve(said)
        return own.get(key) ?? models[0]!.settings.get(key)
      }
      const said = {
        args: [option.long!, ...(flagText === null ? [] : [flagText])],
        env: { [name]: envText },
        file: { [key]: inFile },
      }
      assert.deepEqual(at(said), { value: flag, source: 'flag', at: option.long })
      assert.deepEqual(at({ ...said, args: [] }), { value: env, source: 'env', at: name })
      assert.deepEqual(at({ file: said.file }), { value: file, source: 'file', at: `c.json: ${key}` })
      assert.deepEqual(at({}), { value: fallback, source: 'default', at: null })
    })

  it('OpenTelemetry has a variable of its own, which comes second', () => {
    const otel = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://o' }
    const at = (env: Record<string, string>) => resolve({ env }).settings.get('otlpEndpoint')
    assert.deepEqual(at(otel), { value: 'http://o', source: 'env', at: 'OTEL_EXPORTER_OTLP_ENDPOINT' })
    assert.equal(at({ ...otel, KVASIR_OTLP_ENDPOINT: 'http://k' })?.value, 'http://k')
  })

  it('a flag turns back a switch', () => {
    const env = { KVASIR_PRELOAD: '1', KVASIR_PAGE: '0', KVASIR_INSECURE: 'true' }
    const { settings } = resolve({ args: ['--no-preload', '--page', '--no-insecure'], env })
    assert.deepEqual(settings.get('preload'), { value: false, source: 'flag', at: '--no-preload' })
    assert.deepEqual(settings.get('page'), { value: true, source: 'flag', at: '--page' })
    assert.deepEqual(settings.get('insecure'), { value: false, source: 'flag', at: '--no-insecure' })
  })

  it('an empty variable is none, but a key that got lost is an error', () => {
    assert.equal(resolve({ env: { KVASIR_HOST: '', KVASIR_PORT: '' } }).settings.get('port')?.source, 'default')
    assert.throws(() => resolve({ env: { KVASIR_API_KEY: '' } }), /KVASIR_API_KEY: an API key must be .* not empty/)
  })

  it('the models come from one place', () => {
    const said = { models: ['a=house'], env: { KVASIR_MODELS: 'b=house, house' }, file: { models: ['c=house'] } }
    const names = (s: Said) => resolve(s).models.map(({ name, source }) => `${name} ${source}`)
    assert.deepEqual(names(said), ['a flag'])
    assert.deepEqual(names({ ...said, models: [] }), ['b env', 'house env'])
    assert.deepEqual(names({ file: said.file }), ['c file'])
    assert.deepEqual(names({}), ['house default'])
  })

  it('a model of the file has settings of its own, which flags overrule', () => {
    const file = { context: 512, models: ['house', { name: 'big', model: 'house', context: 1024, kvMemory: '64MiB' }] }
    const engines = (said: Said) => resolve({ file, ...said }).models.map(engineOptionsOf)
    assert.deepEqual(engines({}), [{ contextLength: 512 }, { contextLength: 1024, kvMemory: 2 ** 26 }])
    assert.deepEqual(engines({ env: { KVASIR_CONTEXT: '9' }, args: ['--kv-memory', '1G', '-t', '1'] }), [
      { contextLength: 9, kvMemory: 2 ** 30, threads: 1 },
      { contextLength: 9, kvMemory: 2 ** 30, threads: 1 },
    ])
    const [, big] = resolve({ file }).models
    assert.deepEqual(big!.settings.get('context')?.at, 'c.json: models[1].context')
  })
})

describe('what the library gets', () => {
  it('is nothing for nothing', () => {
    assert.deepEqual(toServerOptions(givenOf(resolve({}).settings)), {})
  })

  it('has its own names', () => {
    const file = { apiKey: 'k', drain: '1m', page: false, logLevel: 'warn', metricsCompat: 'vllm', idleUnload: '5m' }
    const { settings } = resolve({ file, args: ['--allowed-host', 'a', '--allowed-host', 'b'] })
    assert.deepEqual(toServerOptions(givenOf(settings)), {
      ...{ apiKeys: ['k'], drainMs: 60_000, page: false, metricsCompat: 'vllm', idleUnloadMs: 300_000 },
      allowedHosts: ['a', 'b'],
    })
  })
})

describe('what is wrong is named', () => {
  const cases: [Said, RegExp][] = [
    [
      { env: { KVASIR_PORT: 'tcp://10.0.0.1:80' } },
      /KVASIR_PORT: "tcp:\/\/10\.0\.0\.1:80" cannot be used\. It must be a number/,
    ],
    [{ env: { KVASIR_PORT: '70000' } }, /KVASIR_PORT: port is 70000; it must be a whole number from 0 to 65535/],
    [{ env: { KVASIR_PRELOAD: 'yes' } }, /KVASIR_PRELOAD: "yes" is neither true nor false/],
    [
      { env: { KVASIR_SCHEDULER: 'fifo' } },
      /KVASIR_SCHEDULER: "fifo" cannot be used\. Allowed choices are sarathi-serve, /,
    ],
    [{ env: { KVASIR_DRAIN: '30' } }, /KVASIR_DRAIN: "30" cannot be used\. It must be a duration such as/],
    [{ env: { KVASIR_KV_MEMORY: '0' } }, /KVASIR_KV_MEMORY: kvMemory is 0; it must be a whole number from 1/],
    [{ env: { KVASIR_MODELS: 'house,' } }, /"" names no model/],
    [{ args: ['--port', '1.5'] }, /--port: port is 1\.5; it must be a whole number/],
    [{ args: ['--threads', '0'] }, /--threads: threads is 0/],
    [{ args: ['--api-key', 'a b'] }, /--api-key: an API key must be printable ASCII/],
    [{ file: { prot: 1 } }, /c\.json: there is no setting "prot"; did you mean "port"\?/],
    [{ file: { zzzzzzzzz: 1 } }, /c\.json: there is no setting "zzzzzzzzz"; known are models, host, /],
    [{ file: { port: '8080' } }, /c\.json: "port" is "8080"; it must be a number/],
    [{ file: { port: 70_000 } }, /c\.json: port: port is 70000; it must be a whole number from 0 to 65535/],
    [{ file: { page: 'no' } }, /c\.json: "page" is "no"; it must be true or false/],
    [{ file: { drain: 30 } }, /c\.json: "drain" is 30; it must be a duration such as/],
    [{ file: { drain: 'soon' } }, /c\.json: drain: "soon" cannot be used\. It must be a duration such as/],
    [{ file: { bodyLimit: [] } }, /c\.json: "bodyLimit" is \[\]; it must be a size such as/],
    [{ file: { logLevel: 'loud' } }, /c\.json: "logLevel" is "loud"; it must be one of trace, debug, /],
    [{ file: { corsOrigin: ['*', 7] } }, /c\.json: "corsOrigin\[1\]" is 7; it must be a text/],
    [{ file: { host: null } }, /c\.json: "host" is null; it must be a text/],
    [{ file: { models: {} } }, /c\.json: "models" is \{\}; it must be a list of at least one model/],
    [{ file: { models: [] } }, /c\.json: "models" is \[\]; it must be a list of at least one model/],
    [{ file: { models: [7] } }, /c\.json: "models\[0\]" is 7; it must be "\[NAME=\]MODEL", or an object/],
    [{ file: { models: ['house', {}] } }, /c\.json: "models\[1\]\.model" is missing/],
    [
      { file: { models: [{ model: 'house', contxt: 1 }] } },
      /no setting "models\[0\]\.contxt"; did you mean "context"\?/,
    ],
    [{ file: { models: [{ model: 'house', port: 1 }] } }, /no setting "models\[0\]\.port"/],
    [{ file: { models: [{ model: 'house', context: '1' }] } }, /"models\[0\]\.context" is "1"; it must be a number/],
    [{ file: { models: [{ model: 'house', context: 0 }] } }, /c\.json: models\[0\]\.context: contextLength is 0/],
    [
      { file: { models: [{ model: 'house', name: 'a b' }] } },
      /"models\[0\]\.name" is "a b"; it must be a name of letters/,
    ],
    [{ file: [] }, /c\.json: it is \[\]; it must be an object/],
  ]
  for (const [said, text] of cases)
    it(JSON.stringify(said), () =>
      assert.throws(
        () => resolve(said),
        (e: Error) => {
          assert.match(e.message, text)
          return e.message.startsWith('INVALID_ARGUMENT: ')
        },
      ),
    )

  it('but a key is not shown', () => {
    for (const apiKey of [5_555_555, { s3cret: 1 }, ['ok', 5_555_555], 's3cret key'])
      assert.throws(
        () => resolve({ file: { apiKey } }),
        (e: Error) => {
          assert.match(e.message, /apiKey|API key/)
          return !/s3cret k|5555555/.test(e.message)
        },
      )
  })
})

describe('files', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'kvasir-config-'))
  })
  after(() => rmSync(folder, { recursive: true }))
  const write = (name: string, text: string) => {
    const path = join(folder, name)
    writeFileSync(path, text)
    return path
  }

  it('are named by a flag, else by a variable', () => {
    const [one, two] = [write('1.json', '{"port": 1}'), write('2.json', '\ufeff{"port": 2}')]
    const port = (flags: object, env: Record<string, string>) => {
      const { settings, file } = readConfig([], flags as Record<string, unknown>, env)
      return [settings.get('port')?.value, file.source]
    }
    assert.deepEqual(port({ config: one }, { KVASIR_CONFIG: two }), [1, 'flag'])
    assert.deepEqual(port({}, { KVASIR_CONFIG: two }), [2, 'env'])
    assert.deepEqual(port({}, {}), [8080, 'default'])
  })

  it('that cannot be read say so', () => {
    const missing = join(folder, 'missing.json')
    assert.throws(() => readConfig([], { config: missing }, {}), /--config: .*missing\.json could not be read/)
    assert.throws(
      () => readConfig([], {}, { KVASIR_CONFIG: missing }),
      /KVASIR_CONFIG: .*missing\.json could not be read/,
    )
    assert.throws(() => readConfig([], { config: write('x.json', '{port: 1}') }, {}), /x\.json is not JSON: /)
  })

  it('of keys add to those that are given', () => {
    const values = (file: string) => valuesOf(resolve({ args: ['--api-key', 'a', '--api-key-file', file] }))
    assert.deepEqual(apiKeysOf(values(write('keys', '# ours\r\n b,1 \n\nc\n'))), ['a', 'b,1', 'c'])
    assert.throws(() => apiKeysOf(values(write('none', '# none\n'))), /--api-key-file: .*none holds no key/)
    assert.throws(() => apiKeysOf(values(join(folder, 'missing'))), /--api-key-file: .*could not be read/)
  })
})

describe('--print-config', () => {
  it('shows values as they can be typed, where they come from, and no secrets', () => {
    const file = { models: [{ model: 'house', kvMemory: '1MiB' }], drain: '90s' }
    const printed = describeConfig(resolve({ file, env: { KVASIR_API_KEY: 's3cret,other' } }))
    const { apiKey, drain, receiveTimeout, idleUnload, models } = JSON.parse(JSON.stringify(printed))
    assert.deepEqual(apiKey, { value: ['***', '***'], source: 'env', at: 'KVASIR_API_KEY' })
    assert.deepEqual(drain, { value: '90s', source: 'file', at: 'c.json: drain' })
    assert.deepEqual(receiveTimeout, { value: '30s', source: 'default' })
    assert.deepEqual(idleUnload, { value: null, source: 'default' })
    const [{ settings, ...model }] = models
    assert.deepEqual(model, { name: 'house', model: 'house', source: 'file', at: 'c.json: models[0]' })
    assert.deepEqual(settings.kvMemory, { value: 2 ** 20, source: 'file', at: 'c.json: models[0].kvMemory' })
    assert.deepEqual(settings.scheduler, { value: 'sarathi-serve', source: 'default' })
    assert.doesNotMatch(JSON.stringify(printed), /s3cret/)
  })
})
