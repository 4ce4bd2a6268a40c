import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { choosePolicy, describePolicies, POLICIES, type PolicySpec, policyNamed } from './index.ts'

const refuses = (spec: string | PolicySpec, text: RegExp) =>
  assert.throws(
    () => choosePolicy(spec),
    (e) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT' && text.test(e.message),
  )

test('a text and an object say the same', () => {
  const a = choosePolicy('snapkv?window=32&pool=max')
  const b = choosePolicy({ name: 'snapkv', pool: 'max', window: 32 })
  assert.equal(a.definition, POLICIES.snapkv)
  assert.deepEqual(a, b)
  assert.equal(a.options['window'], 32)
  assert.equal(a.options['kernel'], 5)
})

test('the text holds what differs from the defaults, in one order, and is understood again', () => {
  const { text } = choosePolicy('snapkv?pool=max&window=16&kernel=7')
  assert.equal(text, 'snapkv?kernel=7&pool=max')
  assert.equal(choosePolicy(text).text, text)
  assert.equal(choosePolicy('full').text, 'full')
})

test('errors name the option, what was given and what is allowed', () => {
  refuses('snapvk', /no policy is named 'snapvk'. Did you mean 'snapkv'\?/)
  refuses('x', /There are full, random, window/)
  refuses('snapkv?windw=3', /snapkv has no option 'windw'. Did you mean 'window'\?/)
  refuses('snapkv?zzzzzz=3', /There are window, kernel, pool/)
  refuses('full?a=1', /full has no option 'a'. It has none/)
  refuses('snapkv?window=3.5', /'window' must be a whole number from 1 to 1024, got 3.5/)
  refuses('snapkv?window=', /'window' must be .* got ''/)
  refuses('snapkv?window=0x10', /got '0x10'/)
  refuses('snapkv?pool=mean', /'pool' must be one of avg, max, got 'mean'/)
  refuses('snapkv?kernel=4', /snapkv: 'kernel' must be odd/)
  refuses('snapkv?window=3&window=4', /gives 'window' twice/)
  refuses('snapkv?&window=3', /an option without a name/)
  refuses({ name: 'h2o', heavy: Number.NaN }, /'heavy' must be a number from 0 to 1/)
  refuses('tova?layers=cake', /'layers' must be one of uniform, pyramid, error, random/)
})

test('names of JavaScript are no names of policies or options', () => {
  assert.throws(() => policyNamed('toString'), /no policy is named/)
  refuses('snapkv?constructor=1', /has no option/)
})

test('help lists every policy with its options', () => {
  const help = describePolicies()
  for (const { name, summary, options } of Object.values(POLICIES)) {
    assert.ok(help.includes(name) && help.includes(summary))
    for (const option of Object.keys(options)) assert.ok(help.includes(option))
  }
  assert.match(help, /gamma {2}weight of the variance.* \(0 to 1000000; default 200\)/)
})
