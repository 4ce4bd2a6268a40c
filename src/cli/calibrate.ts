/** `kvasir calibrate`: measures what some policies must know of a model, once. */
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { type Command, Option } from 'commander'
import { calibrationPlaces, readCalibration, writeCalibration } from '../engine/calibrations.ts'
import type { CompressKvSettings } from '../eval/calibrate/compresskv.ts'
import type { Measurement } from '../eval/calibrate/measurement.ts'
import type { RazorAttentionSettings } from '../eval/calibrate/razorattention.ts'
import type { UncompSettings } from '../eval/calibrate/uncomp.ts'
import { summary } from './calibrate-summary.ts'
import { interruptible } from './interrupt.ts'
import { modelFile } from './model.ts'
import { addOptions, collectList, given, jsonOption, MODEL_HELP, threadsOption, toNumber } from './options.ts'
import { countBar, loadingBar, noProgress } from './progress.ts'

interface Flags {
  readonly out?: string
  readonly seed?: number
  readonly threads?: number
  readonly device?: string
  readonly json?: true
}

const commonOptions = (): Option[] => [
  new Option('--seed <n>', 'of the texts (default: 0)').argParser(toNumber),
  new Option('-o, --out <file>', 'where the file goes (default: into the cache, where the engine finds it)'),
  threadsOption(),
  new Option('--device <name>', 'CPU, or a GPU such as CUDA0 (default: the first GPU if there is one)'),
  jsonOption('print { "file", "calibration": the whole file } instead of a summary'),
]

const razorattentionOptions = (): Option[] => [
  new Option('--period <tokens>', 'random tokens in a copy (default: 2500, or what fits into the context)').argParser(
    toNumber,
  ),
  new Option('--repeats <n>', 'copies (default: 4)').argParser(toNumber),
]

const compresskvOptions = (): Option[] => [
  new Option('--lengths <tokens>', 'of the texts, several with commas (default: 512,1024,2048)').argParser(collectList),
  new Option('--limit <n>', 'needle prompts of each length, and prompts of each task (default: 10)').argParser(
    toNumber,
  ),
  new Option('--tasks <names>', 'tasks of kvasir eval on which errors are measured (default: house)').argParser(
    collectList,
  ),
  new Option('--steps <n>', 'most tokens of the answers on which errors are measured (default: 32)').argParser(
    toNumber,
  ),
]

const uncompOptions = (): Option[] => [
  new Option('--length <tokens>', 'of the texts (default: 4096, or half the context)').argParser(toNumber),
  new Option('--samples <n>', 'texts (default: 20)').argParser(toNumber),
]

interface CompressKvFlags extends Omit<Partial<CompressKvSettings>, 'lengths'> {
  readonly lengths?: string[]
}

export function addCalibrate(program: Command): void {
  const calibrate = program
    .command('calibrate')
    .description('measure what a policy must know of a model, once: razorattention, compresskv, uncomp')
  add(
    calibrate,
    'razorattention',
    'which KV heads look things up, on a random text that repeats',
    razorattentionOptions(),
  )
    // The measurements are loaded only when they run.
    .action(async (model: string, { period, repeats, seed, ...flags }: Flags & Partial<RazorAttentionSettings>) => {
      const { razorattention } = await import('../eval/calibrate/razorattention.ts')
      await run(razorattention, model, given({ period, repeats, seed }), flags)
    })
  add(
    calibrate,
    'compresskv',
    'which query heads copy from needles, and what eviction does to each layer',
    compresskvOptions(),
  ).action(async (model: string, { lengths, limit, tasks, steps, seed, ...flags }: Flags & CompressKvFlags) => {
    const { compresskv } = await import('../eval/calibrate/compresskv.ts')
    await run(compresskv, model, given({ lengths: lengths?.map(Number), limit, tasks, steps, seed }), flags)
  })
  add(calibrate, 'uncomp', 'how many directions the queries of each layer and head really use', uncompOptions()).action(
    async (model: string, { length, samples, seed, ...flags }: Flags & Partial<UncompSettings>) => {
      const { uncomp } = await import('../eval/calibrate/uncomp.ts')
      await run(uncomp, model, given({ length, samples, seed }), flags)
    },
  )
}

function add(calibrate: Command, policy: string, description: string, options: readonly Option[]): Command {
  const command = calibrate.command(policy).description(description).argument('[model]', MODEL_HELP, 'house')
  return addOptions(command, options, commonOptions())
}

async function run<S extends object>(
  measurement: Measurement<S>,
  model: string,
  settings: Partial<S>,
  { out, threads = availableParallelism(), device, json }: Flags,
): Promise<void> {
  const { calibrate } = await import('../eval/calibrate/measurement.ts')
  const path = await modelFile(model)
  const bar = json && !process.stderr.isTTY ? noProgress : countBar(measurement.unit)
  const loading = loadingBar()
  const file = await interruptible((signal) =>
    calibrate(measurement, path, settings, {
      ...{ threads, signal, ...given({ device }) },
      onLoad: (done, total) => {
        loading.update(done, total)
        if (done === total) loading.end()
      },
      onProgress: bar.update,
    }),
  ).finally(() => {
    loading.end()
    bar.end()
  })
  const [beside, cached] = calibrationPlaces(measurement.policy, file.model.digest, path)
  const place = out ?? cached
  writeCalibration(place, file)
  if (json) process.stdout.write(`${JSON.stringify({ file: place, calibration: file })}\n`)
  else process.stdout.write(`${summary(file.calibration)}\nwritten to ${place}\n`)
  if (place !== beside && existsSync(beside) && readCalibration(beside).model.digest === file.model.digest)
    process.stderr.write(`note: the engine takes ${beside} first, which is of the same model\n`)
}
