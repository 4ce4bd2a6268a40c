/** What is said when the native libraries are missing or foreign; in child processes, since they load once. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { promisify } from 'node:util'

const library = new URL('./library.ts', import.meta.url).href

/** `code: text` of the error that loading gives, or its version. */
async function load(packageName: string): Promise<string> {
  const script = `
    import { loadNative, native } from '${library}'
    const say = (e) => console.log(e.name, e.message)
    try { native() } catch (e) { if (e.code !== 'NATIVE_MISSING') say(e) }
    await loadNative().then((n) => console.log(n.version), say)`
  const args = ['--import', 'tsx', '--input-type=module', '--eval', script]
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    env: { ...process.env, KVASIR_NATIVE_PACKAGE: packageName },
  })
  return stdout.trim()
}

test('a package that is not installed', async () => {
  assert.match(
    await load('@node-llama-cpp/nowhere'),
    /^KvasirError NATIVE_MISSING: no native build for .* \(looked for @node-llama-cpp\/nowhere\)\. .*npm install/,
  )
})

test('a package without native builds', async () => {
  assert.match(await load('koffi'), /^KvasirError NATIVE_MISSING: no native build .*looked for koffi/)
})

test('the package of this platform', {
  skip: process.platform === 'linux' && process.arch === 'x64' ? false : 'other',
}, async () => {
  assert.match(await load('@node-llama-cpp/linux-x64'), /^0\.23\.0$/)
})
