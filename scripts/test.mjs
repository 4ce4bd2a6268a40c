// `npm test [FILTER...]`: all tests of the repository, or those whose path holds one of the words. One process per file. Two
// files run at a time, most of them on one thread; those that need all cores, or the clock, one at a time.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

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

// Tests of the command start it hundreds of times: built, it starts in a third of the time.
if (files.some((path) => readFileSync(path, 'utf8').includes('process.fixture'))) {
  const build = resolve('node_modules/.cache/kvasir-test')
  rmSync(build, { recursive: true, force: true })
  const tsc = ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json', '--outDir', build]
  const { status } = spawnSync(process.execPath, tsc, { stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
  process.env.KVASIR_TEST_BUILD = build
}

// Failures are printed once more at the end, where people and CI look.
const scratch = mkdtempSync(join(tmpdir(), 'kvasir-test-'))
const failures = groups
  .filter((g) => g.files.length > 0)
  .map(({ files, atOnce }, i) => {
    const failed = join(scratch, `failures-${i}`)
    const reporters = [
      ['spec', 'stdout'],
      ['./scripts/failures.mjs', failed],
    ]
    const report = reporters.flatMap(([r, to]) => [`--test-reporter=${r}`, `--test-reporter-destination=${to}`])
    const flags = ['--import', 'tsx', '--test', `--test-concurrency=${atOnce}`, ...report]
    const { status } = spawnSync(process.execPath, [...flags, ...options, ...files], { stdio: 'inherit' })
    if (status !== 0) process.exitCode = status ?? 1
    return readFileSync(failed, 'utf8')
  })
rmSync(scratch, { recursive: true })
if (process.exitCode) console.error(`\nWhat failed:\n\n${failures.join('')}`)
