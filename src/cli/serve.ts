/** `kvasir serve`: an OpenAI-compatible server, and the page. */
import { type Command, Option } from 'commander'
import type { Logger } from 'pino'
import { KvasirError } from '../contract/errors.ts'
import { Engine } from '../engine/engine.ts'
import type { ModelSpec } from '../server/models.ts'
import { isLoopback } from '../server/options.ts'
import { type Server, type ServerParts, startServer } from '../server/server.ts'
import { packageVersion } from '../version.ts'
import { typedDuration } from './duration.ts'
import { addOptions, jsonOption, MODEL_HELP } from './options.ts'
import { loadingBar, noProgress } from './progress.ts'
import { banner, reachableUrl } from './serve-banner.ts'
import {
  apiKeysOf,
  describeConfig,
  engineOptionsOf,
  givenOf,
  readConfig,
  type ServeConfig,
  type ServeValues,
  typedFlags,
  valuesOf,
} from './serve-config.ts'
import { DEFAULT_FILE } from './serve-file.ts'
import { makeLogger } from './serve-log.ts'
import { toSpec } from './serve-models.ts'
import { modelSettings, oppositeOf, serverSettings, toServerOptions } from './serve-settings.ts'
import { exitCodeOf, stopSignals } from './serve-stop.ts'

interface Flags {
  readonly printConfig?: true
  readonly json?: true
}

const HELP = `
Every option but --json and --print-config is also a variable and a key of the file: --idle-unload 5m is
KVASIR_IDLE_UNLOAD=5m and "idleUnload": "5m". MODEL... is KVASIR_MODELS and "models". Flags come before variables, variables
before the file, the file before defaults. More: docs/serve.md`

export const serveOptions = (): Option[] => [
  new Option('--config <file>', `a file with the configuration, JSON (default: ${DEFAULT_FILE} if it is there)`),
  new Option('--print-config', 'print the configuration and where each value comes from, and end'),
  jsonOption('print one JSON object when the server is ready: url, models, pid'),
]

export function addServe(program: Command): void {
  const settings = [...serverSettings(), ...modelSettings()].map(({ option }) => option)
  const command = program
    .command('serve')
    .description('serve models over HTTP: the OpenAI API, metrics, and a page to look at')
    .argument('[model...]', `[NAME=]MODEL: ${MODEL_HELP} (default: house). Requests call it NAME`)
    .addHelpText('after', HELP)
    .action(async (models: string[], flags: Flags, self: Command) => {
      const config = readConfig(models, typedFlags(self), process.env)
      if (flags.printConfig) process.stdout.write(`${JSON.stringify(describeConfig(config), null, 2)}\n`)
      else await serve(config, flags.json === true)
    })
  addOptions(command, settings, serveOptions())
  addOptions(
    command,
    settings.flatMap((option) => oppositeOf(option) ?? []),
  )
}

async function serve(config: ServeConfig, json: boolean): Promise<void> {
  const values = valuesOf(config)
  const apiKeys = apiKeysOf(values)
  const isOpen = refuseStrangers(values, apiKeys)
  const options = { ...toServerOptions(givenOf(config.settings)), apiKeys }
  const models: ModelSpec[] = []
  for (const model of config.models) models.push(await toSpec(model, engineOptionsOf(model)))

  // A log that nobody reads any more must not end the server.
  process.stderr.on('error', () => {})
  const log = makeLogger(values.logLevel, values.logFormat, (line) => void process.stderr.write(line))
  using stop = stopSignals()
  const server = await startServer({ ...options, models }, { logger: log, load: loader(log) })
  stop.prepared()
  announce(server, values, apiKeys.length > 0, json, log)
  if (isOpen) log.warn(`whoever reaches ${values.host} may use this server: there is no API key (--insecure)`)

  const signal = await stop.asked
  const patience = typedDuration(values.drain)
  log.info({ signal }, `shutting down: running answers get ${patience} to end; a second signal ends them at once`)
  await server.close()
  log.info('shut down')
  process.exitCode = exitCodeOf(signal)
}

/** Whether strangers may use it, as was asked for. @throws KvasirError INVALID_ARGUMENT when it was not */
function refuseStrangers({ host, insecure }: ServeValues, apiKeys: readonly string[]): boolean {
  const isOpen = !isLoopback(host) && apiKeys.length === 0
  if (isOpen && !insecure)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `whoever reaches ${host} could use this server: give it an API key (--api-key, --api-key-file, KVASIR_API_KEY), ` +
        'or say that this is meant (--insecure)',
      { host },
    )
  return isOpen
}

/** With a bar for the first load, which somebody may be waiting for; the log tells of all. */
function loader(log: Logger): NonNullable<ServerParts['load']> {
  let progress = loadingBar
  return async (path, options) => {
    const start = performance.now()
    const bar = progress()
    progress = () => noProgress
    const watched = { ...options, onProgress: (done: number, total: number) => bar.update(done, total) }
    const engine = await Engine.load(path, watched).finally(() => bar.end())
    log.info({ file: path, ms: Math.round(performance.now() - start) }, 'model loaded')
    return engine
  }
}

/** With `json` for a program on stdout; else on stderr, as the log is written. */
function announce(
  { app, pool, url: listens }: Server,
  values: ServeValues,
  needsKey: boolean,
  json: boolean,
  log: Logger,
) {
  const url = reachableUrl(listens)
  const models = pool.list()
  if (json) {
    process.stdout.write(`${JSON.stringify({ url, models: models.map(({ id }) => id), pid: process.pid })}\n`)
  } else if (values.logFormat === 'text') {
    const facts = models.map(({ id, engine }) => ({ id, info: engine?.info ?? null }))
    const page = app.hasRoute({ method: 'GET', url: '/' })
    process.stderr.write(banner({ version: packageVersion(), url, page, needsKey, models: facts }))
    return
  }
  log.info({ url, models: models.map(({ id }) => id) }, 'ready')
}
