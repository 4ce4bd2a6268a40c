/** What is published: the build runs under plain node, as a library and as a command, and the package holds what it needs. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
// Below node_modules, so that the build finds its dependencies as an installed package does.
const dist = join(root, 'node_modules', '.cache', 'kvasir-dist')
const run = (...args: string[]) => execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' })

describe('the build', () => {
  before(() => {
    run('node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json', '--outDir', dist)
  })
  after(() => rmSync(dist, { recursive: true, force: true }))

  it('runs as a command', () => {
    const out = run(join(dist, 'src/cli/main.js'), 'run', '-p', 'Hello', '-n', '3', '-t', '1', '--json')
    assert.equal(JSON.parse(out).timings.generated_tokens, 3)
    const bench = run(join(dist, 'src/cli/main.js'), 'bench', 'parity', '-m', 'house', '-t', '1', '--json')
    assert.equal(JSON.parse(bench).rows[0].max_abs_logit_diff, 0)
  })

  it('is a library with types', async () => {
    const { Engine } = await import(pathToFileURL(join(dist, 'src/index.js')).href)
    const engine = await Engine.load('house', { threads: 1, contextLength: 256 })
    let tokens = 0
    for await (const part of engine.generate({ prompt: 'The ship', maxTokens: 3 })) if (part.kind === 'token') tokens++
    engine.dispose()
    assert.equal(tokens, 3)
  })
})

it('the package holds the model, and no tests or sources of its own', () => {
  const [{ files }] = JSON.parse(
    execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: root, encoding: 'utf8' }),
  ) as [{ files: { path: string }[] }]
  const paths = files.map((f) => f.path)
  for (const path of ['README.md', 'LICENSE', 'models/house-5m/house-5m-q8_0.gguf', 'docs/library.md'])
    assert.ok(paths.includes(path), `${path} is not in the package`)
  assert.deepEqual(
    paths.filter((p) => /\.test\.|^src\/|^node_modules\//.test(p)),
    [],
  )
})
