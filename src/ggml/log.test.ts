import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { KvasirError } from '../contract/errors.ts'
import { llama, loadLlama } from '../model/libllama/library.ts'
import { Tokenizer } from '../model/tokenizer/tokenizer.ts'
import { str, strings, writeGguf } from './gguf/index.ts'
import { captureLog, loggedErrors } from './log.ts'

test('what libllama logs during a call can be had, and afterwards it is silent again', async () => {
  await loadLlama()
  const load = () => llama.llama_model_load_from_file('/no/such/file', llama.llama_model_default_params())
  const { result, lines } = captureLog(load, llama.llama_log_set)
  assert.equal(result, null)
  assert.ok(lines.some((l) => l.level === 'error' && l.text.includes('/no/such/file')))
  assert.match(loggedErrors(lines), /^: .*\/no\/such\/file/)
  assert.equal(load(), null)
})

test('its reason is part of our error', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-log-'))
  try {
    const path = join(folder, 'odd.gguf')
    const metadata = [
      ['general.architecture', str('llama')],
      ['tokenizer.ggml.model', str('from-the-future')],
      ['tokenizer.ggml.tokens', strings(['a', 'b', 'c'])],
    ] as const
    writeGguf(path, { metadata, tensors: [] })
    await assert.rejects(Tokenizer.load(path), (e: KvasirError) => {
      assert.equal(e.code, 'MODEL_INVALID')
      assert.match(e.message, /from-the-future/)
      return true
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})
