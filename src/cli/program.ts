/** All commands, without running any: for `main.ts`, and for the pages that are made from their help. */
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { addBench } from './bench.ts'
import { addChat } from './chat.ts'
import { addEval } from './eval.ts'
import { addInspect } from './inspect.ts'
import { addPull } from './pull.ts'
import { addRun } from './run.ts'

/** In the order of the help. */
const COMMANDS: readonly ((program: Command) => void)[] = [addRun, addChat, addInspect, addPull, addEval, addBench]

export function makeProgram(): Command {
  const program = new Command('kvasir')
    .description('An LLM engine for TypeScript: GGUF models on ggml')
    .version(version())
    .exitOverride()
  for (const add of COMMANDS) add(program)
  return program
}

function version(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')).version
}
