/** How a failed command ends: words on stderr, with `--json` an object on stdout too, and an exit code. */
import { CommanderError } from 'commander'
import { KvasirError } from '../contract/errors.ts'

/** 2 is for commands that were typed wrongly; 130 is what shells give for a program ended by Ctrl-C (128 + SIGINT). */
export const EXIT = { failed: 1, usage: 2, interrupted: 130 } as const

/** Tells the user and sets the exit code. The process ends by itself, so that what was written to pipes gets through. */
export function reportFailure(error: unknown, json: boolean): void {
  const { exitCode, code, message, details } = describe(error)
  process.exitCode = exitCode
  if (exitCode === 0) return
  // Commander has written its own message already.
  if (!(error instanceof CommanderError)) process.stderr.write(`error: ${message}\n`)
  if (json) process.stdout.write(`${JSON.stringify({ error: { code, message, details } })}\n`)
}

function describe(error: unknown) {
  if (error instanceof KvasirError) {
    const { code, message, details } = error
    // Whoever caught the signal has set the code that belongs to it.
    const stopped = code === 'ABORTED' ? (process.exitCode ?? EXIT.interrupted) : EXIT.failed
    return { exitCode: stopped, code, message, details }
  }
  if (error instanceof CommanderError) {
    // Help and version come this way too; help that was not asked for is a usage error.
    const exitCode = error.exitCode === 0 ? 0 : EXIT.usage
    return { exitCode, code: 'USAGE', message: error.message.replace(/^error: /, ''), details: {} }
  }
  // A mistake of ours: the stack is what a bug report needs.
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error)
  return { exitCode: EXIT.failed, code: 'INTERNAL', message: `unexpected: ${stack}`, details: {} }
}
