/**
 * `npm start`: builds the page where it is missing or old, then `kvasir serve` with the arguments that were given
 * (`npm start -- --port 9000`). All in this process, so that Ctrl-C and signals reach the server alone.
 */
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const say = (text: string) => void process.stderr.write(`${text}\n`)

/** Of the newest file below a folder, in milliseconds; 0 for none. */
function newest(folder: string): number {
  if (!existsSync(folder)) return 0
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((f) => f.isFile())
  return Math.max(0, ...files.map((f) => statSync(join(f.parentPath, f.name)).mtimeMs))
}

/** Whether the page was built after the last change of what it is built from. */
function isCurrent(): boolean {
  const script = statSync(join(root, 'scripts', 'build-page.mjs')).mtimeMs
  return newest(join(root, 'dist', 'page')) >= Math.max(newest(join(root, 'src', 'page')), script)
}

if (!isCurrent())
  try {
    say('building the page ...')
    // Imported here: the bundler takes a moment, and is a development dependency.
    const { buildPage } = await import('./build-page.mjs')
    await buildPage()
  } catch (error) {
    // The API needs no page.
    say(`the page could not be built: ${(error as Error).message}`)
  }
process.argv.splice(2, 0, 'serve')
await import('../src/cli/main.ts')
