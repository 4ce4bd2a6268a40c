/** What the pages say is so: the README's program is an example that runs, and links lead somewhere. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFileSync(join(root, path), 'utf8')

test("the README's program is examples/hello.ts, and it answers", () => {
  const program = read('examples/hello.ts').replace("'../src/index.ts'", "'kvasir'").trim()
  assert.ok(read('README.md').includes(program), 'README.md does not hold examples/hello.ts')
  const { stdout, stderr, status } = spawnSync(process.execPath, ['--import', 'tsx', 'examples/hello.ts'], {
    cwd: root,
    encoding: 'utf8',
  })
  assert.equal(status, 0, stderr)
  assert.match(stdout, /rabbit/)
  assert.match(stdout, /prompt_tokens: \d+/)
})

test('links between pages lead somewhere', () => {
  const pages = [
    'README.md',
    'models/house-5m/README.md',
    ...readdirSync(join(root, 'docs'), { recursive: true })
      .filter((f) => String(f).endsWith('.md'))
      .map((f) => join('docs', String(f))),
  ]
  for (const page of pages)
    for (const [, target] of read(page).matchAll(/\]\((?!https?:|#)([^)#]+)/g))
      assert.ok(existsSync(join(root, dirname(page), target!)), `${page} links to ${target}`)
})
