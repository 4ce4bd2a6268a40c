/**
 * The house model on a GPU, when a GPU package and a device for it are there (a software device such as Mesa's llvmpipe
 * will do: see docs/gpu.md). Answers must equal the CPU's. In a process of its own: the libraries are loaded once.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const PACKAGES = [
  '@node-llama-cpp/linux-x64-cuda',
  '@node-llama-cpp/linux-x64-vulkan',
  '@node-llama-cpp/win-x64-vulkan',
]

const script = `
  import { LocalEngine } from './src/index.ts'
  import { devices } from './src/ggml/device.ts'
  import { loadNative } from './src/ggml/library.ts'
  await loadNative()
  const gpu = devices().find((d) => d.kind !== 'cpu')
  if (!gpu) { console.log(JSON.stringify({ gpu: null })); process.exit(0) }
  const answer = async (device) => {
    const engine = await LocalEngine.load('house', { device, threads: 1, contextLength: 1024 })
    const content = 'Karin Osford keeps a hamster as a pet. '.repeat(6) + 'Which animal does Karin Osford keep as a pet?'
    const ask = async (content) => {
      let text = ''
      const request = { messages: [{ role: 'user', content }], sampling: { temperature: 0 }, maxTokens: 40 }
      for await (const part of engine.generate(request)) text += part.text
      return text
    }
    // Alone; from stored blocks; and three together, with a table that a fork shares.
    const text = [await ask(content), await ask(content), ...(await Promise.all([1, 2, 3].map((i) => ask(content.slice(40 * i)))))]
    const where = engine.info.weights.map((w) => w.where)
    await engine.dispose()
    return { text: text.join('|'), where }
  }
  console.log(JSON.stringify({ gpu: gpu.name, onGpu: await answer(gpu.name), onCpu: await answer('CPU') }))
`

test('answers on a GPU equal those on the CPU', { timeout: 300_000 }, async (t) => {
  const installed: string[] = []
  for (const name of PACKAGES) {
    try {
      import.meta.resolve(name)
      installed.push(name)
    } catch {
      // not installed
    }
  }
  if (!installed.length) return t.skip('no GPU package is installed')
  const { stdout, stderr, status, signal } = spawnSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '--eval', script],
    {
      cwd: fileURLToPath(new URL('..', import.meta.url)),
      encoding: 'utf8',
      env: { ...process.env, KVASIR_NATIVE_PACKAGE: installed[0]! },
    },
  )
  assert.equal(status, 0, `${signal ?? ''} ${stderr}`)
  const { gpu, onGpu, onCpu } = JSON.parse(stdout.trim().split('\n').at(-1)!)
  if (!gpu) return t.skip(`${installed[0]} is installed, but it finds no device`)
  assert.ok(onGpu.where.includes(gpu), `weights lie in ${onGpu.where}`)
  assert.match(onCpu.text, /hamster/)
  assert.equal(onGpu.text, onCpu.text)
})
