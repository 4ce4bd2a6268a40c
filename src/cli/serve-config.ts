/**
 * What a server is to do, from everything that says so: flags before the environment before the file before defaults,
 * setting by setting. Of an engine's settings, those of the model in the file come before those at the file's top.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { KvasirError } from '../contract/errors.ts'
import type { EngineOptions } from '../engine/options.ts'
import { type EngineFlags, readText, toEngineOptions } from './options.ts'
import { type ConfigFile, fileSchema, readConfigFile } from './serve-file.ts'
import type { LogFormat, LogLevel } from './serve-log.ts'
import { type NamedModel, parseModel } from './serve-models.ts'
import { flagFor, isSecret, isSwitch, modelSettings, type Setting, serverSettings } from './serve-settings.ts'

type Env = Readonly<Record<string, string | undefined>>
type Values = Readonly<Record<string, unknown>>

/** Where a value comes from; `at` is the flag, the variable or the place in the file. */
export interface Found {
  readonly value: unknown
  readonly source: 'flag' | 'env' | 'file' | 'default'
  readonly at: string | null
}

export interface ConfiguredModel extends NamedModel {
  readonly source: Found['source']
  readonly at: string | null
  readonly settings: ReadonlyMap<string, Found>
}

export interface ServeConfig {
  /** The file that was read. */
  readonly file: Found
  readonly settings: ReadonlyMap<string, Found>
  readonly models: readonly ConfiguredModel[]
}

/** What the command itself reads of the settings. */
export interface ServeValues {
  readonly host: string
  readonly apiKey: readonly string[]
  readonly apiKeyFile: string | null
  readonly insecure: boolean
  readonly drain: number
  readonly logLevel: LogLevel
  readonly logFormat: LogFormat
}

export interface Said {
  /** Models on the command line. */
  readonly models: readonly string[]
  /** By key, only those that were given. */
  readonly flags: Values
  readonly env: Env
  readonly file: ConfigFile | null
}

/** Commander knows defaults too (`--no-...`); only what was typed counts here. */
export function typedFlags(command: Command): Values {
  return Object.fromEntries(
    Object.entries(command.opts()).filter(([key]) => command.getOptionValueSource(key) === 'cli'),
  )
}

/** Reads the file that is meant. @throws KvasirError INVALID_ARGUMENT */
export function readConfig(models: readonly string[], flags: Values, env: Env): ServeConfig {
  const named = configFileNamed(flags, env)
  const file = readConfigFile(
    named && { path: named.value as string, by: named.at! },
    fileSchema(serverSettings(), modelSettings()),
  )
  const found: Found = named ?? { value: file?.path ?? null, source: 'default', at: null }
  return { ...resolveConfig({ models, flags, env, file }), file: found }
}

function configFileNamed(flags: Values, env: Env): Found | null {
  if (flags['config'] !== undefined) return { value: flags['config'], source: 'flag', at: '--config' }
  return env['KVASIR_CONFIG'] ? { value: env['KVASIR_CONFIG'], source: 'env', at: 'KVASIR_CONFIG' } : null
}

/** @throws KvasirError INVALID_ARGUMENT that names the flag, the variable or the place in the file */
export function resolveConfig(said: Said): Omit<ServeConfig, 'file'> {
  const top: Place[] = said.file ? [{ values: said.file.values, at: `${said.file.path}: ` }] : []
  return {
    settings: findAll(serverSettings(), said, top),
    models: modelsOf(said).map(({ own, ...model }) => ({
      ...model,
      settings: findAll(modelSettings(), said, own ? [own, ...top] : top),
    })),
  }
}

/** An object of the file that may hold settings; what goes before a key to say where it is. */
interface Place {
  readonly values: Values
  readonly at: string
}

type Listed = NamedModel & Pick<Found, 'source' | 'at'> & { readonly own: Place | null }

/** The command line names all models, or the environment does, or the file. */
function modelsOf({ models, env, file }: Said): Listed[] {
  const plain = (texts: readonly string[], source: Found['source'], at: string | null): Listed[] =>
    texts.map((text) => ({ ...parseModel(text), source, at, own: null }))
  if (models.length) return plain(models, 'flag', null)
  const listed = env['KVASIR_MODELS']
  if (listed)
    return plain(
      listed.split(',').map((m) => m.trim()),
      'env',
      'KVASIR_MODELS',
    )
  if (!file?.models) return plain(['house'], 'default', null)
  return file.models.map((entry, i): Listed => {
    const at = `${file.path}: models[${i}]`
    if (typeof entry === 'string') return { ...parseModel(entry), source: 'file', at, own: null }
    const { name, model, ...values } = entry
    return { name: name ?? parseModel(model).name, model, source: 'file', at, own: { values, at: `${at}.` } }
  })
}

function findAll(settings: readonly Setting[], said: Said, places: readonly Place[]): ReadonlyMap<string, Found> {
  return new Map(settings.map((setting) => [setting.key, find(setting, said, places)]))
}

function find(setting: Setting, { flags, env }: Said, places: readonly Place[]): Found {
  const { key, option, fallback } = setting
  if (flags[key] !== undefined)
    return checked(setting, { value: flags[key], source: 'flag', at: flagFor(option, flags[key]) })
  for (const name of setting.env) {
    // Empty is what a variable is that was passed on but never set. A key must not get lost in that way.
    if (env[name] === undefined || (env[name] === '' && !isSecret(key))) continue
    return checked(setting, { value: parse(setting, env[name], name), source: 'env', at: name })
  }
  for (const { values, at } of places) {
    const value = values[key]
    if (value === undefined) continue
    const where = `${at}${key}`
    const parsed = typeof value === 'string' ? parse(setting, value, where) : value
    return checked(setting, { value: parsed, source: 'file', at: where })
  }
  return { value: fallback, source: 'default', at: null }
}

/** As the flag is parsed. */
function parse({ key, option }: Setting, text: string, at: string): unknown {
  if (isSwitch(option)) {
    const value = { true: true, '1': true, false: false, '0': false }[text.toLowerCase()]
    if (value === undefined) throw invalid(at, `"${text}" is neither true nor false`, key)
    return value
  }
  try {
    return option.parseArg ? option.parseArg(text, undefined as never) : text
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error
    throw invalid(at, `"${text}" cannot be used. ${error.message}`, key)
  }
}

function checked({ key, check }: Setting, found: Found): Found {
  try {
    check(found.value)
  } catch (error) {
    if (!(error instanceof KvasirError)) throw error
    throw invalid(found.at!, error.message.replace(`${error.code}: `, ''), key)
  }
  return found
}

function invalid(at: string, what: string, key: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', `${at}: ${what}`, { at, setting: key })
}

/** Values alone. */
export function valuesOf({ settings }: ServeConfig): ServeValues {
  return Object.fromEntries([...settings].map(([key, { value }]) => [key, value])) as unknown as ServeValues
}

/** Those that were given: the library has its own defaults. */
export function givenOf(settings: ReadonlyMap<string, Found>): Values {
  const given = [...settings].filter(([, { source }]) => source !== 'default')
  return Object.fromEntries(given.map(([key, { value }]) => [key, value]))
}

export function engineOptionsOf({ settings }: ConfiguredModel): EngineOptions {
  return toEngineOptions(givenOf(settings) as EngineFlags)
}

/** Of the settings, and of the file that they name. @throws KvasirError INVALID_ARGUMENT for one that cannot be read or is empty */
export function apiKeysOf({ apiKey, apiKeyFile }: ServeValues): readonly string[] {
  if (apiKeyFile === null) return apiKey
  const lines = readText(apiKeyFile, '--api-key-file').split(/\r?\n/)
  const keys = lines.map((line) => line.trim()).filter((line) => line !== '' && !line.startsWith('#'))
  if (keys.length === 0) throw invalid('--api-key-file', `${apiKeyFile} holds no key`, 'apiKeyFile')
  return [...apiKey, ...keys]
}

/** The configuration and where each value comes from, as JSON. */
export function describeConfig({ file, settings, models }: ServeConfig): object {
  const list = (all: readonly Setting[], found: ReadonlyMap<string, Found>) =>
    Object.fromEntries(all.map((setting) => [setting.key, shown(setting, found.get(setting.key)!)]))
  return {
    config: withPlace(file),
    ...list(serverSettings(), settings),
    models: models.map(({ name, model, source, at, settings: own }) => ({
      ...{ name, model, source, ...(at ? { at } : {}) },
      settings: list(modelSettings(), own),
    })),
  }
}

function shown({ key, show }: Setting, found: Found): object {
  if (found.value === null) return withPlace(found)
  const value = isSecret(key) ? (found.value as readonly string[]).map(() => '***') : show(found.value)
  return withPlace({ ...found, value })
}

function withPlace({ value, source, at }: Found): object {
  return { value, source, ...(at ? { at } : {}) }
}
