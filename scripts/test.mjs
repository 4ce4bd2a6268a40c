// `npm test [FILTER...]`: all tests of the repository, or those whose path holds one of the words. One process per file. Two
// files run at a time, most of them on one thread; those that need all cores, or the clock, one at a time.
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
// What measures times, compares bits at full speed, or takes all cores, has the machine for itself.
const ALONE = /^(bench.[a-z]+\.test|src.ggml|test.(gpu|oracle|soak|server.isolation))\b/
const groups = [
  { files: files.filter((path) => !ALONE.test(path)), atOnce: 2 },
  { files: files.filter((path) => ALONE.test(path)), atOnce: 1 },
]
for (const { files, atOnce } of groups.filter((g) => g.files.length > 0)) {
  const flags = ['--import', 'tsx', '--test', `--test-concurrency=${atOnce}`]
  const { status } = spawnSync(process.execPath, [...flags, ...options, ...files], { stdio: 'inherit' })
  if (status !== 0) process.exitCode = status ?? 1
}
