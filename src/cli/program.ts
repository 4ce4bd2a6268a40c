/** All commands, without running any: for `main.ts`, and for the pages that are made from their help. */
import { Command } from 'commander'
import { packageVersion } from '../version.ts'
import { addBench } from './bench.ts'
import { addCalibrate } from './calibrate.ts'
import { addChat } from './chat.ts'
import { addEval } from './eval.ts'
import { addInspect } from './inspect.ts'
import { addPull } from './pull.ts'
import { addReport } from './report.ts'
import { addRun } from './run.ts'
import { addServe } from './serve.ts'

/** In the order of the help. */
const COMMANDS: readonly ((program: Command) => void)[] = [
  addRun,
  addChat,
  addServe,
  addInspect,
  addPull,
  addEval,
  addReport,
  addCalibrate,
  addBench,
]

export function makeProgram(): Command {
  const program = new Command('kvasir')
    .description('An LLM engine for TypeScript: GGUF models on ggml')
    .version(packageVersion())
    .exitOverride()
  for (const add of COMMANDS) add(program)
  return program
}
