import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { checkSampling, type SamplingParams } from './params.ts'

const refuses = (params: object, text: RegExp) =>
  assert.throws(
    () => checkSampling(params as SamplingParams, 100),
    (e) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT' && text.test(e.message),
  )

describe('checkSampling', () => {
  it('fills in llama.cpp defaults and freezes', () => {
    const { seed, ...rest } = checkSampling({}, 100)
    assert.ok(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32 - 1)
    assert.deepEqual(rest, {
      temperature: 0.8,
      topK: 40,
      topP: 0.95,
      minP: 0.05,
      typicalP: 1,
      topNSigma: 0,
      repeatPenalty: 1,
      repeatLastN: 64,
      frequencyPenalty: 0,
      presencePenalty: 0,
      dry: { multiplier: 0, base: 1.75, allowedLength: 2, penaltyLastN: 4096, sequenceBreakers: ['\n', ':', '"', '*'] },
      xtc: undefined,
      mirostat: undefined,
      logitBias: new Map(),
      grammar: undefined,
      logprobs: undefined,
    })
    assert.throws(() => Object.assign(checkSampling({}, 100), { topK: 1 }), TypeError)
  })

  it('gives back what it gave', () => {
    const once = checkSampling({ json: true, seed: 3, logitBias: { 7: 1 } }, 100)
    assert.equal(checkSampling(once, 100), once)
    assert.deepEqual(checkSampling({ ...once } as SamplingParams, 101), once)
  })

  it('names the field, what was got and what is allowed', () => {
    refuses({ temperature: -1 }, /temperature is -1; allowed: numbers from 0 to 100/)
    refuses({ temperature: 1e-9 }, /temperature is 1e-9; allowed: 0, or/)
    refuses({ temperature: Number.NaN }, /temperature is NaN/)
    refuses({ temperature: '1' }, /temperature is "1"/)
    refuses({ topK: 1.5 }, /topK is 1.5; allowed: whole numbers/)
    refuses({ topP: 1.1 }, /topP/)
    refuses({ repeatPenalty: 0 }, /repeatPenalty/)
    refuses({ seed: 2 ** 32 - 1 }, /seed/)
    refuses({ logprobs: 21 }, /logprobs is 21; allowed: whole numbers from 0 to 20/)
    refuses({ logitBias: { 100: 1 } }, /logitBias is "100"; allowed: token ids from 0 to 99/)
    refuses({ logitBias: { x: 1 } }, /logitBias/)
    refuses({ logitBias: { 3: Infinity } }, /logitBias\[3\] is Infinity/)
    refuses({ dry: { base: 0.5 } }, /dry\.base is 0\.5/)
    refuses({ dry: { sequenceBreakers: [''] } }, /dry\.sequenceBreakers/)
    refuses({ dry: { sequenceBreakers: ['a\0b'] } }, /dry\.sequenceBreakers/)
    refuses({ xtc: { probability: 2 } }, /xtc\.probability/)
    refuses({ mirostat: 2 }, /mirostat is 2; allowed: an object/)
    refuses({ grammar: 5 }, /grammar is 5/)
    refuses({ grammar: 'root ::= "a"', json: true }, /at most one of/)
  })

  it('takes misspelt names for errors and suggests', () => {
    refuses({ topk: 1 }, /called topk\. Did you mean topK\?/)
    refuses({ dry: { multipler: 1 } }, /dry\.multipler\. Did you mean dry\.multiplier\?/)
    refuses({ max_tokens: 1 }, /Known are/)
  })

  it('turns json and jsonSchema into grammars', () => {
    assert.match(checkSampling({ json: true }, 100).grammar ?? '', /^root ::= object/)
    assert.match(checkSampling({ jsonSchema: { type: 'boolean' } }, 100).grammar ?? '', /"true" \| "false"/)
    assert.equal(checkSampling({ json: false }, 100).grammar, undefined)
    const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'GRAMMAR_INVALID'
    assert.throws(() => checkSampling({ grammar: 'root ::= (' }, 100), isInvalid)
    assert.throws(() => checkSampling({ jsonSchema: { not: {} } }, 100), isInvalid)
  })
})
