/**
 * Everything that `kvasir serve` can be told, once: flag, environment variable, key in the file, default and check of a
 * setting all come from its entry here. Three spellings by one rule: `--idle-unload`, `KVASIR_IDLE_UNLOAD`, `"idleUnload"`.
 */
import { Option } from 'commander'
import Type, { type TSchema } from 'typebox'
import { completeOptions } from '../engine/options.ts'
import { type CompleteServerOptions, completeServerOptions, type ServerOptions } from '../server/options.ts'
import { parseBytes } from './bytes.ts'
import { parseDuration, typedDuration } from './duration.ts'
import { collectList, type EngineFlags, engineOptions, servingOptions, toEngineOptions, toNumber } from './options.ts'
import { LOG_FORMATS, LOG_LEVELS } from './serve-log.ts'

export interface Setting {
  /** In the file, and among Commander's values. */
  readonly key: string
  readonly option: Option
  /** Variables that set it, the first one first. */
  readonly env: readonly string[]
  /** Of its value in the file. */
  readonly schema: TSchema
  /** Null when there is none, or when it depends on the model. */
  readonly fallback: unknown
  /** @throws KvasirError INVALID_ARGUMENT for a value that is out of range */
  readonly check: (value: unknown) => void
  /** The value as it could be typed. */
  readonly show: (value: unknown) => unknown
}

/** What a setting may be in the file; its description ends the sentence "it must be". */
const CHOICE = (values: readonly string[]) => Type.Enum([...values], { description: `one of ${values.join(', ')}` })
const BOOLEAN = Type.Boolean({ description: 'true or false' })
const TEXT = Type.String({ description: 'a text' })
/** By the parser of the flag. */
const PARSED = new Map<unknown, TSchema>([
  [toNumber, Type.Number({ description: 'a number' })],
  [
    parseBytes,
    Type.Union([Type.Number(), Type.String()], { description: 'a size such as "512MiB", or a number of bytes' }),
  ],
  [parseDuration, Type.String({ description: 'a duration such as "500ms", "30s" or "5m"' })],
  [collectList, Type.Union([Type.Array(TEXT), Type.String()], { description: 'a list of texts' })],
])

function schemaOf(option: Option): TSchema {
  if (option.argChoices) return CHOICE(option.argChoices)
  if (isSwitch(option)) return BOOLEAN
  return PARSED.get(option.parseArg) ?? TEXT
}

export function isSwitch(option: Option): boolean {
  return !option.required && !option.optional
}

/** Is shown to nobody. */
export function isSecret(key: string): boolean {
  return key === 'apiKey'
}

function setting(option: Option, more: Pick<Setting, 'fallback' | 'check'>, otherEnv: readonly string[] = []): Setting {
  const key = option.attributeName()
  const env = `KVASIR_${key.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase()}`
  const show =
    option.parseArg === parseDuration ? (ms: unknown) => typedDuration(ms as number) : (value: unknown) => value
  return { key, option, env: [env, ...otherEnv], schema: schemaOf(option), show, ...more }
}

/** By the field of {@link ServerOptions} that they become. */
const SERVER = (): { readonly [F in Exclude<keyof ServerOptions, 'models'>]-?: Option } => ({
  host: new Option(
    '--host <address>',
    'address to listen on; beyond this machine it needs an API key (default: 127.0.0.1)',
  ),
  port: new Option('--port <n>', 'port to listen on; 0: any that is free (default: 8080)').argParser(toNumber),
  apiKeys: new Option(
    '--api-key <key>',
    'a key that opens the server; several with commas, or given several times (default: none is asked for)',
  ).argParser(collectList),
  allowedHosts: new Option(
    '--allowed-host <name>',
    'a name by which a server without keys may be called; *: any (default: names of this machine)',
  ).argParser(collectList),
  corsOrigins: new Option(
    '--cors-origin <origin>',
    'web pages from here may call the server; *: from anywhere (default: its own page alone)',
  ).argParser(collectList),
  bodyLimit: new Option('--body-limit <size>', 'largest request (default: 32MiB)').argParser(parseBytes),
  receiveTimeoutMs: new Option(
    '--receive-timeout <time>',
    'a request must have arrived as a whole within this time (default: 30s)',
  ).argParser(parseDuration),
  answerTimeoutMs: new Option(
    '--answer-timeout <time>',
    'an answer must have begun within this time, unless the request says another (default: no limit)',
  ).argParser(parseDuration),
  idleUnloadMs: new Option(
    '--idle-unload <time>',
    'unload a model that nobody used for this long (default: never)',
  ).argParser(parseDuration),
  preload: new Option('--preload', 'load all models at the start, not the first alone'),
  drainMs: new Option('--drain <time>', 'on shutdown, running answers get this long to end (default: 30s)').argParser(
    parseDuration,
  ),
  metricsCompat: new Option('--metrics-compat <names>', "/metrics also speaks another server's names").choices([
    'vllm',
  ]),
  page: new Option('--no-page', 'do not serve the page'),
  otlpEndpoint: new Option(
    '--otlp-endpoint <url>',
    'send OpenTelemetry spans to this OTLP/HTTP receiver (default: $OTEL_EXPORTER_OTLP_ENDPOINT, else nowhere)',
  ),
})

const OTHER_ENV: Readonly<Record<string, readonly string[]>> = { otlpEndpoint: ['OTEL_EXPORTER_OTLP_ENDPOINT'] }

function serverSetting(field: Exclude<keyof ServerOptions, 'models'>, option: Option): Setting {
  const fallback = completeServerOptions({ models: [] })[field satisfies keyof CompleteServerOptions]
  const check = (value: unknown) => void completeServerOptions({ models: [], [field]: value })
  return setting(option, { fallback, check }, OTHER_ENV[field])
}

/** Of the command itself: the library has no word for them. */
const commandSettings = (): Setting[] => [
  setting(new Option('--api-key-file <file>', 'a file with more such keys, one a line; # begins a comment'), {
    fallback: null,
    check: () => {},
  }),
  setting(new Option('--insecure', 'listen beyond this machine without an API key: whoever reaches it may use it'), {
    fallback: false,
    check: () => {},
  }),
  setting(new Option('--log-level <level>', 'log what is at least this grave (default: info)').choices(LOG_LEVELS), {
    fallback: 'info',
    check: () => {},
  }),
  setting(
    new Option(
      '--log-format <format>',
      'lines for people or for programs (default: text on a terminal, else json)',
    ).choices(LOG_FORMATS),
    { fallback: process.stderr.isTTY ? 'text' : 'json', check: () => {} },
  ),
]

/** Settings of the server as a whole. */
export const serverSettings = (): Setting[] => [
  ...Object.entries(SERVER()).map(([field, option]) => serverSetting(field as keyof ReturnType<typeof SERVER>, option)),
  ...commandSettings(),
]

/** Settings of an engine: in the file each model may have its own. */
export const modelSettings = (): Setting[] =>
  [...engineOptions(), ...servingOptions()].map((option) => {
    const alone = (value: unknown) => toEngineOptions({ [option.attributeName()]: value } as EngineFlags)
    // The one field that this flag alone becomes.
    const field = Object.keys(alone(0))[0] as keyof ReturnType<typeof completeOptions>
    const fallback = completeOptions({})[field]
    return setting(option, { fallback, check: (value) => void completeOptions(alone(value)) })
  })

/** What the settings of the command become for the library. */
export function toServerOptions(values: Readonly<Record<string, unknown>>): Omit<ServerOptions, 'models'> {
  const fields = Object.entries(SERVER()).map(([field, option]) => [field, values[option.attributeName()]])
  return Object.fromEntries(fields.filter(([, value]) => value !== undefined))
}

/** Turns back what a switch does, so that a flag can overrule the environment and the file. */
export function oppositeOf(option: Option): Option | null {
  return isSwitch(option) ? new Option(flagFor(option, option.negate)).hideHelp() : null
}

/** The flag that gives this value. */
export function flagFor(option: Option, value: unknown): string {
  if (!isSwitch(option)) return option.long!
  return `${value ? '--' : '--no-'}${option.name().replace(/^no-/, '')}`
}
