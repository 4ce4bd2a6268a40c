#!/usr/bin/env node
/** `kvasir`: the library from a terminal. */
import { reportFailure } from './failure.ts'
import { makeProgram } from './program.ts'

// `kvasir run ... | head`: nobody reads on, so there is nothing left to do.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

try {
  await makeProgram().parseAsync()
} catch (error) {
  reportFailure(error, process.argv.includes('--json'))
}
