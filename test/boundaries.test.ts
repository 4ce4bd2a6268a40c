/** Imports point down: each folder may import itself and what stands below it. The list is the design's, top to bottom. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const ORDER = [
  'cli',
  'bench',
  'page',
  'server',
  'eval',
  'engine',
  'scheduler',
  'executor',
  'policies',
  'cache',
  'model',
  'ggml',
  'contract',
]

/** `src/model/x.ts` -> `model`; `bench/x.ts` -> `bench`; others are not ordered. */
function room(path: string): string | null {
  const [first, second] = relative(root, path).split('/')
  const name = first === 'src' ? second! : first!
  return ORDER.includes(name) ? name : null
}

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((f) => f.isFile() && f.name.endsWith('.ts') && !f.name.endsWith('.test.ts'))
    .map((f) => join(f.parentPath, f.name))
}

test('imports point down', () => {
  const wrong: string[] = []
  let seen = 0
  for (const file of [...sources(join(root, 'src')), ...sources(join(root, 'bench'))]) {
    const from = room(file)
    if (!from) continue
    for (const [, target] of readFileSync(file, 'utf8').matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)) {
      const to = room(resolve(dirname(file), target!))
      seen++
      if (to && ORDER.indexOf(to) < ORDER.indexOf(from)) wrong.push(`${relative(root, file)} imports ${target}`)
    }
  }
  assert.ok(seen > 50, `only ${seen} imports were seen`)
  assert.deepEqual(wrong, [])
})

test('every folder of src has its place in the order', () => {
  const folders = readdirSync(join(root, 'src'), { withFileTypes: true }).filter((f) => f.isDirectory())
  assert.deepEqual(
    folders.map((f) => f.name).filter((name) => !ORDER.includes(name)),
    [],
  )
})
