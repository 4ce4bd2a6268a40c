// `npm test [FILTER...]`: all tests of the repository, or those whose path holds one of the words. One process per file,
// one file at a time: the tests compute, and two of them on two cores would only wait for each other.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'

const words = process.argv.slice(2).filter((a) => !a.startsWith('-'))
const options = process.argv.slice(2).filter((a) => a.startsWith('-'))
const files = ['src', 'test', 'bench', 'examples']
  .flatMap((folder) => readdirSync(folder, { recursive: true, withFileTypes: true }))
  .filter((f) => f.isFile() && f.name.endsWith('.test.ts'))
  .map((f) => join(f.parentPath, f.name))
  .filter((path) => words.length === 0 || words.some((w) => path.includes(w)))
  .sort()
if (files.length === 0) {
  console.error(`no test file matches ${words.join(', ')}`)
  process.exit(1)
}
const { status } = spawnSync(
  process.execPath,
  ['--import', 'tsx', '--test', '--test-concurrency=1', ...options, ...files],
  { stdio: 'inherit' },
)
process.exit(status ?? 1)
