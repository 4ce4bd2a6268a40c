/** Flags that several commands share, and what they become for the library. Ranges are checked there, not here. */
import { readFileSync } from 'node:fs'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import { KvasirError } from '../contract/errors.ts'
import { DEFAULT_CONTEXT, type EngineOptions } from '../engine/options.ts'
import type { GenerateRequest } from '../engine/request.ts'
import { LOWERINGS, type LoweringName } from '../executor/lower/lowering.ts'
import type { JsonSchema } from '../model/sampling/json-schema.ts'
import type { SamplingParams } from '../model/sampling/params.ts'
import { DEFAULT_SCHEDULER, SCHEDULERS, type SchedulerName } from '../scheduler/index.ts'
import { parseBytes } from './bytes.ts'

export const MODEL_HELP = 'a GGUF file, hf:OWNER/REPO[:FILE], or house: the small model that comes with Kvasir'

export function addOptions(command: Command, ...lists: readonly (readonly Option[])[]): Command {
  for (const option of lists.flat()) command.addOption(option)
  return command
}

export const jsonOption = (help: string) => new Option('--json', help)

export interface EngineFlags {
  readonly context?: number
  readonly threads?: number
  readonly device?: string
  readonly cacheTypeK?: CacheType
  readonly cacheTypeV?: CacheType
  readonly lowering?: LoweringName
  readonly kvMemory?: number
  readonly scheduler?: SchedulerName
  readonly tokenBudget?: number
  readonly maxSequences?: number
  readonly maxWaiting?: number
  readonly diskCache?: string
  readonly diskCacheBytes?: number
  readonly hostCache?: number
  readonly policyModule?: readonly string[]
}

export const threadsOption = () =>
  new Option('-t, --threads <n>', 'compute threads on the CPU (default: as many as there are cores)').argParser(
    toNumber,
  )

export const loweringOption = () =>
  new Option('--lowering <name>', 'how attention is computed (default: auto)').choices(LOWERINGS)

/** What decides how much memory an engine takes. */
export const memoryOptions = (): Option[] => [
  new Option(
    '-c, --context <tokens>',
    `tokens of prompt and answer together (default: the model's, at most ${DEFAULT_CONTEXT})`,
  ).argParser(toNumber),
  new Option('--cache-type-k <type>', 'type of cached keys (default: f16)').choices(CACHE_TYPES),
  new Option('--cache-type-v <type>', 'type of cached values (default: f16)').choices(CACHE_TYPES),
  new Option(
    '--kv-memory <size>',
    'memory for cached keys and values, stored prefixes too: 512MiB, 2G, 1.5GB (default: four contexts, at most an ' +
      'eighth of what is free)',
  ).argParser(parseBytes),
  new Option('--token-budget <rows>', 'most rows of a step (default: 512)').argParser(toNumber),
]

/** For whoever runs an engine, be it for a single request. */
export const engineOptions = (): Option[] => [
  ...memoryOptions(),
  threadsOption(),
  new Option('--device <name>', 'CPU, or a GPU such as CUDA0 (default: the first GPU if there is one)'),
  loweringOption(),
  new Option('--disk-cache <folder>', 'keep what was computed for prompts, for the next start (default: off)'),
  new Option('--disk-cache-bytes <size>', 'most bytes in that folder (default: 8GiB)').argParser(parseBytes),
  new Option(
    '--policy-module <file>',
    'a cache policy of your own, for --policy; several with commas, or given several times (default: none)',
  ).argParser(collectList),
]

export const maxSequencesOption = () =>
  new Option('--max-sequences <n>', 'most sequences that run at once (default: 16)').argParser(toNumber)

export const hostCacheOption = () =>
  new Option(
    '--host-cache <size>',
    'the part of --kv-memory that keeps what had to leave the cache in ordinary memory (default: 0)',
  ).argParser(parseBytes)

/** Beside {@link engineOptions}, for engines that serve many requests at once. */
export const servingOptions = (): Option[] => [
  new Option('--scheduler <name>', `which work runs next (default: ${DEFAULT_SCHEDULER})`).choices(
    Object.keys(SCHEDULERS),
  ),
  maxSequencesOption(),
  new Option('--max-waiting <n>', 'requests that may wait; more are refused (default: 256)').argParser(toNumber),
  hostCacheOption(),
]

export function toEngineOptions(f: EngineFlags): EngineOptions {
  return given({
    contextLength: f.context,
    threads: f.threads,
    device: f.device,
    keyType: f.cacheTypeK,
    valueType: f.cacheTypeV,
    lowering: f.lowering,
    kvMemory: f.kvMemory,
    scheduler: f.scheduler,
    tokenBudget: f.tokenBudget,
    maxSequences: f.maxSequences,
    maxWaiting: f.maxWaiting,
    diskCache: f.diskCache,
    diskCacheBytes: f.diskCacheBytes,
    hostCacheBytes: f.hostCache,
    policyModules: f.policyModule,
  })
}

/** Number flags of the sampler: field of {@link SamplingParams}, placeholder, help. */
const SAMPLING_NUMBERS = {
  temperature: ['n', '0 always takes the most likely token (default: 0.8)'],
  topK: ['n', 'keep the n most likely tokens; 0: all (default: 40)'],
  topP: ['p', 'keep the most likely tokens that together reach p; 1: all (default: 0.95)'],
  minP: ['p', 'keep tokens at least p times as likely as the likeliest; 0: all (default: 0.05)'],
  typicalP: ['p', 'keep the most typical tokens that together reach p; 1: all (default: 1)'],
  topNSigma: ['n', 'keep logits within n standard deviations of the highest; 0: all (default: 0)'],
  repeatPenalty: ['n', 'divides the logits of tokens seen lately; 1: off (default: 1)'],
  repeatLastN: ['n', 'how many tokens "lately" means (default: 64)'],
  frequencyPenalty: ['n', 'subtracted for each time a token was seen lately (default: 0)'],
  presencePenalty: ['n', 'subtracted if a token was seen lately (default: 0)'],
  seed: ['n', 'makes the answer repeatable (default: a random one)'],
} as const satisfies { readonly [K in keyof SamplingParams]?: readonly [string, string] }

export interface SamplingFlags extends Partial<Record<keyof typeof SAMPLING_NUMBERS, number>> {
  readonly dryMultiplier?: number
  readonly xtcProbability?: number
  readonly mirostatTau?: number
  readonly maxTokens?: number
  readonly stop?: string[]
  readonly jsonSchema?: string
  readonly grammar?: string
  readonly policy?: string
  readonly budget?: string
}

export const samplingOptions = (): Option[] => [
  new Option('-n, --max-tokens <n>', 'most tokens to generate (default: until the context is full)').argParser(
    toNumber,
  ),
  ...Object.entries(SAMPLING_NUMBERS).map(([field, [unit, help]]) =>
    new Option(`--${kebab(field)} <${unit}>`, help).argParser(toNumber),
  ),
  new Option('--dry-multiplier <n>', 'punish going on with a run of tokens that came before (default: 0)').argParser(
    toNumber,
  ),
  new Option('--xtc-probability <p>', 'how often to exclude the likeliest choices (default: 0)').argParser(toNumber),
  new Option('--mirostat-tau <bits>', 'hold the surprise of the text at this, instead of truncating').argParser(
    toNumber,
  ),
  new Option('--stop <text>', 'ends the answer; can be given several times').argParser(collect),
  new Option('--json-schema <file>', 'the answer must be JSON that satisfies the schema in this file'),
  new Option('--grammar <file>', 'the answer must match the GBNF grammar in this file'),
  new Option(
    '--policy <name>',
    'what shortens the cache behind the prompt: snapkv, "cake?window=32", ... (default: nothing)',
  ),
  new Option(
    '--budget <size>',
    'what the policy may keep, if it takes a budget: 0.25 of the full cache, 512 tokens, 64MiB',
  ),
]

/** The part of a request that flags decide. @throws KvasirError INVALID_ARGUMENT for files that cannot be read. */
export function toRequest(
  f: SamplingFlags,
): Pick<GenerateRequest, 'sampling' | 'maxTokens' | 'stop' | 'policy' | 'budget'> {
  const numbers = Object.keys(SAMPLING_NUMBERS).map((field) => [field, f[field as keyof typeof SAMPLING_NUMBERS]])
  const sampling: SamplingParams = given({
    ...Object.fromEntries(numbers),
    dry: f.dryMultiplier === undefined ? undefined : { multiplier: f.dryMultiplier },
    xtc: f.xtcProbability === undefined ? undefined : { probability: f.xtcProbability },
    mirostat: f.mirostatTau === undefined ? undefined : { tau: f.mirostatTau },
    jsonSchema: f.jsonSchema === undefined ? undefined : readSchema(f.jsonSchema),
    grammar: f.grammar === undefined ? undefined : readText(f.grammar, '--grammar'),
  })
  return { sampling, ...given({ maxTokens: f.maxTokens, stop: f.stop, policy: f.policy, budget: f.budget }) }
}

function readSchema(file: string): JsonSchema {
  try {
    return JSON.parse(readText(file, '--json-schema'))
  } catch (cause) {
    if (cause instanceof KvasirError) throw cause
    const message = `--json-schema: ${file} is not JSON: ${(cause as Error).message}`
    throw new KvasirError('INVALID_ARGUMENT', message, { file }, cause)
  }
}

export function readText(file: string, flag: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    const message = `${flag}: ${file} could not be read: ${(cause as Error).message}`
    throw new KvasirError('INVALID_ARGUMENT', message, { file }, cause)
  }
}

export function toNumber(text: string): number {
  const n = Number(text)
  if (text.trim() === '' || Number.isNaN(n)) throw new InvalidArgumentError('It must be a number.')
  return n
}

/** For flags that can be given several times. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value]
}

/** As {@link collect}, and each value can hold several, with commas between. */
export function collectList(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), ...value.split(',').map((s) => s.trim())]
}

function kebab(camelCase: string): string {
  return camelCase.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)
}

type Given<T> = { [K in keyof T]?: Exclude<T[K], undefined> }

/** Leaves out what was not given: the library takes `undefined` for a mistake. */
export function given<T extends object>(fields: T): Given<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Given<T>
}
