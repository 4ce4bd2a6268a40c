import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { parseModel, toSpec } from './serve-models.ts'

describe('[NAME=]MODEL', () => {
  const cases: [string, string, string][] = [
    ['house', 'house', 'house'],
    ['models/qwen2.5-0.5b-q8_0.gguf', 'qwen2.5-0.5b-q8_0', 'models/qwen2.5-0.5b-q8_0.gguf'],
    ['/big-00001-of-00003.gguf', 'big', '/big-00001-of-00003.gguf'],
    ['small=house', 'small', 'house'],
    ['Qwen/Qwen2.5=m.gguf', 'Qwen/Qwen2.5', 'm.gguf'],
    ['./a=b.gguf', 'a=b', './a=b.gguf'],
    ['x=./a=b.gguf', 'x', './a=b.gguf'],
    ['hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF', 'Qwen2.5-0.5B-Instruct', 'hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF'],
    ['hf:o/r-GGUF:Q8_0', 'r', 'hf:o/r-GGUF:Q8_0'],
    ['hf:o/r:sub/file-q8_0.gguf', 'file-q8_0', 'hf:o/r:sub/file-q8_0.gguf'],
    ['gpt=hf:o/r', 'gpt', 'hf:o/r'],
  ]
  for (const [text, name, model] of cases) it(text, () => assert.deepEqual(parseModel(text), { name, model }))

  it('needs a model', () => {
    for (const text of ['', 'x=']) assert.throws(() => parseModel(text), /INVALID_ARGUMENT: ".*" names no model/)
    assert.throws(() => parseModel('hf:nothing'), /INVALID_ARGUMENT: "hf:nothing" does not name a model of the hub/)
  })

  it('that is not there is found missing at once', async () => {
    await assert.rejects(toSpec({ name: 'x', model: '/no/such.gguf' }, {}), /MODEL_NOT_FOUND.*\/no\/such\.gguf.*"x"/)
    const spec = await toSpec({ name: 'x', model: 'house' }, { threads: 1 })
    assert.match(spec.path, /house-5m-q8_0\.gguf$/)
    assert.deepEqual({ ...spec, path: '' }, { id: 'x', path: '', engine: { threads: 1 } })
  })
})
