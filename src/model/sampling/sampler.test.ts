import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import fc from 'fast-check'
import { type ErrorCode, KvasirError } from '../../contract/errors.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { llama } from '../libllama/library.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { HOUSE_MODEL } from '../tokenizer/vocabularies.fixture.ts'
import type { SamplingParams } from './params.ts'
import { Sampler } from './sampler.ts'

const isCode =
  (code: ErrorCode, text = /./) =>
  (e: unknown) =>
    e instanceof KvasirError && e.code === code && text.test(e.message)
/** Nothing but the draw. */
const PLAIN = { temperature: 1, topK: 0, topP: 1, minP: 0 } as const satisfies SamplingParams

/** mulberry32; two of them make a normal number. */
function random(seed: number): () => number {
  let a = seed
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

function softmax(logits: ArrayLike<number>): Float64Array {
  const top = Math.max(...Array.from(logits))
  const e = Float64Array.from(logits, (x) => Math.exp(x - top))
  const sum = e.reduce((a, b) => a + b)
  return e.map((x) => x / sum)
}

describe('Sampler', () => {
  const before_ = liveNatives()
  let t: Tokenizer
  let n = 0
  before(async () => {
    t = await Tokenizer.load(HOUSE_MODEL)
    n = t.vocabSize
  })
  after(() => {
    t.dispose()
    assert.deepEqual(liveNatives(), before_)
  })

  /** Logits of -30 but for these. */
  const only = (entries: Record<number, number>) => {
    const logits = new Float32Array(n).fill(-30)
    for (const [token, x] of Object.entries(entries)) logits[Number(token)] = x
    return logits
  }
  const normal = (seed: number, spread: number) => {
    const next = random(seed)
    return Float32Array.from({ length: n }, () => {
      return spread * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
    })
  }
  /** How often each token is drawn. */
  const draws = (params: SamplingParams, logits: Float32Array, times: number) => {
    using sampler = new Sampler(t, { seed: 1, ...params })
    const counts = new Map<number, number>()
    for (let i = 0; i < times; i++) {
      const { token } = sampler.sample(logits)
      counts.set(token, (counts.get(token) ?? 0) + 1)
    }
    return counts
  }
  const ranked = (logits: Float32Array) => [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!)
  const sorted = (tokens: Iterable<number>) => [...tokens].sort((a, b) => a - b)

  describe('greedy', () => {
    it('takes the highest logit, of equals the lowest id, as libllama does', () => {
      using sampler = new Sampler(t, { temperature: 0 })
      using shaped = new Sampler(t, { temperature: 0, logitBias: { 5: 1 } })
      const logits = only({ 9: 3, 100: 3, 4000: 3 })
      assert.deepEqual(sampler.sample(logits), { token: 9 })
      assert.deepEqual(shaped.sample(logits), { token: 9 })
      const greedy = llama.llama_sampler_init_greedy()
      llama.llama_sampler_free(greedy)
    })

    it('ignores truncations and chance', () => {
      const logits = normal(2, 3)
      const best = ranked(logits)[0]!
      const params = { temperature: 0, typicalP: 0.1, topP: 0.1, xtc: { probability: 1, threshold: 0.01 } }
      assert.deepEqual(draws(params, logits, 20), new Map([[best, 20]]))
    })
  })

  describe('draw', () => {
    it('follows softmax(logits / temperature)', () => {
      const logits = only({ 1: 1, 50: 2, 51: 0.5, 4095: 2.5, 7: -1 })
      for (const temperature of [0.5, 1, 2]) {
        const times = 6000
        const counts = draws({ ...PLAIN, temperature }, logits, times)
        const p = softmax(Float64Array.from(logits, (x) => x / temperature))
        for (const token of [1, 50, 51, 4095, 7]) {
          const error = Math.abs((counts.get(token) ?? 0) / times - p[token]!)
          // five standard deviations; the seed is fixed
          assert.ok(
            error <= 5 * Math.sqrt((p[token]! * (1 - p[token]!)) / times) + 1e-9,
            `${temperature} ${token} ${error}`,
          )
        }
      }
    })

    it('gives the same tokens for the same seed, others for another', () => {
      const logits = normal(3, 1)
      const run = (seed: number) => {
        using sampler = new Sampler(t, { ...PLAIN, seed })
        return Array.from({ length: 30 }, () => sampler.sample(logits).token)
      }
      assert.deepEqual(run(7), run(7))
      assert.notDeepEqual(run(7), run(8))
    })

    it('chooses and reports a seed', () => {
      using a = new Sampler(t)
      using b = new Sampler(t)
      assert.notEqual(a.seed, b.seed)
      const logits = normal(3, 1)
      using again = new Sampler(t, { seed: a.seed })
      assert.deepEqual(
        [1, 2, 3].map(() => a.sample(logits)),
        [1, 2, 3].map(() => again.sample(logits)),
      )
    })
  })

  describe('truncations keep what a float64 reference keeps', () => {
    const flat = { ...PLAIN, temperature: 100 }
    const keeps = (params: SamplingParams, logits: Float32Array, expected: number[]) => {
      const counts = draws({ ...flat, ...params }, logits, 100 + 40 * expected.length)
      assert.deepEqual(sorted(counts.keys()), sorted(expected), JSON.stringify(params))
    }

    it('top-k', () => {
      const logits = normal(4, 3)
      for (const k of [1, 2, 13]) keeps({ topK: k }, logits, ranked(logits).slice(0, k))
    })

    it('top-p', () => {
      const logits = normal(5, 4)
      const p = softmax(logits)
      for (const topP of [0.2, 0.5, 0.7]) {
        let sum = 0
        const expected = ranked(logits).filter((token) => {
          const kept = sum < topP
          sum += p[token]!
          return kept
        })
        keeps({ topP }, logits, expected)
      }
    })

    it('min-p', () => {
      const logits = normal(6, 3)
      const p = softmax(logits)
      const top = Math.max(...p)
      for (const minP of [0.05, 0.3])
        keeps(
          { minP },
          logits,
          sorted(logits.keys()).filter((i) => p[i]! >= minP * top),
        )
    })

    it('typical, also with impossible tokens among the candidates', () => {
      for (const spread of [4, 60]) {
        const logits = normal(7, spread)
        const p = softmax(logits)
        const possible = [...p.keys()].filter((i) => p[i]! > 0)
        const entropy = possible.reduce((h, i) => h - p[i]! * Math.log(p[i]!), 0)
        const distance = (i: number) => Math.abs(-Math.log(p[i]!) - entropy)
        for (const typicalP of [0.2, 0.5]) {
          let sum = 0
          const expected = possible
            .sort((a, b) => distance(a) - distance(b))
            .filter((token) => {
              const kept = sum <= typicalP
              sum += p[token]!
              return kept
            })
          keeps({ typicalP }, logits, expected)
        }
      }
    })

    it('top-n-sigma', () => {
      const logits = normal(8, 3)
      const mean = logits.reduce((a, b) => a + b) / n
      const sigma = Math.sqrt(logits.reduce((a, b) => a + (b - mean) ** 2, 0) / n)
      const least = Math.max(...logits) - sigma
      keeps(
        { topNSigma: 1 },
        logits,
        sorted(logits.keys()).filter((i) => logits[i]! >= least),
      )
    })

    it('xtc', () => {
      const logits = only({ 10: 3, 11: 2.5, 12: 2, 13: 0 })
      keeps({ xtc: { probability: 1, threshold: 0.1 }, topK: 4 }, logits, [12, 13])
      keeps({ xtc: { probability: 0, threshold: 0.1 }, topK: 4 }, logits, [10, 11, 12, 13])
    })
  })

  it('mirostat steers surprise', () => {
    const logits = normal(9, 2)
    const p = softmax(logits)
    const mean = (tau: number) => {
      using sampler = new Sampler(t, { temperature: 1, mirostat: { tau, eta: 0.1 }, seed: 3 })
      const bits = Array.from({ length: 400 }, () => -Math.log2(p[sampler.sample(logits).token]!)).slice(100)
      return bits.reduce((a, b) => a + b) / bits.length
    }
    // tau counts surprise among the kept tokens, which is less than among all
    const means = [0, 3, 6].map(mean)
    assert.ok(means[1]! > means[0]! + 0.3 && means[2]! > means[1]! + 0.5, means.join(' '))
  })

  describe('shaping', () => {
    /** Asserts that token 100 ends up with logit `expected`, by a contest with token 200. */
    const becomes = (params: SamplingParams, history: number[], logit: number, expected: number) => {
      for (const [rival, winner] of [
        [expected - 1e-3, 100],
        [expected + 1e-3, 200],
      ] as const) {
        using sampler = new Sampler(t, { temperature: 0, ...params })
        for (const token of history) sampler.accept(token)
        assert.equal(sampler.sample(only({ 100: logit, 200: rival })).token, winner, `${logit} -> ${expected}`)
      }
    }

    it('penalties', () => {
      becomes({ repeatPenalty: 2 }, [100], 3, 1.5)
      becomes({ repeatPenalty: 2 }, [100], -3, -6)
      becomes({ frequencyPenalty: 0.25 }, [100, 5, 100], 3, 2.5)
      becomes({ presencePenalty: 0.25 }, [100, 5, 100], 3, 2.75)
      becomes({ repeatPenalty: 2, frequencyPenalty: 0.25, presencePenalty: 0.5 }, [100, 100], 4, 1)
      becomes({ repeatPenalty: 2, repeatLastN: 2 }, [100, 5, 6], 3, 3)
      becomes({ repeatPenalty: 2, repeatLastN: 0 }, [100], 3, 3)
    })

    it('logit bias', () => {
      becomes({ logitBias: { 100: -1.5 } }, [], 3, 1.5)
      becomes({ logitBias: new Map([[100, 2]]) }, [], 3, 5)
      using sampler = new Sampler(t, { temperature: 0, logitBias: { 100: -Infinity } })
      assert.equal(sampler.sample(only({ 100: 10, 200: 1 })).token, 200)
    })

    it('dry', () => {
      const dry = { multiplier: 0.5, base: 2, allowedLength: 2, sequenceBreakers: [] }
      becomes({ dry }, [1, 2, 3, 100, 5, 1, 2, 3], 3, 3 - 0.5 * 2 ** (3 - 2))
      becomes({ dry }, [9, 2, 3, 100, 5, 1, 2, 3], 3, 3 - 0.5)
      becomes({ dry }, [9, 9, 3, 100, 5, 1, 2, 3], 3, 3)
      becomes({ dry: { ...dry, penaltyLastN: 5 } }, [1, 2, 3, 100, 5, 1, 2, 3], 3, 3)
      const word = t.encode('\n')[0]!
      becomes({ dry: { ...dry, sequenceBreakers: ['\n'] } }, [1, word, 3, 100, 5, 1, word, 3], 3, 3)
    })

    it('prompt tokens count', () => {
      using sampler = new Sampler(t, { temperature: 0, repeatPenalty: 2, repeatLastN: 3 })
      sampler.acceptPrompt([...Array(10_000).fill(7), 100, 5])
      assert.equal(sampler.sample(only({ 100: 3, 200: 1.6 })).token, 200)
    })
  })

  it('reports log-probabilities of the raw logits', () => {
    const logits = only({ 3: 1, 4: 2, 5: 2, 6: 0 })
    const p = softmax(logits)
    using sampler = new Sampler(t, { temperature: 0, logitBias: { 6: 50 }, logprobs: 3 })
    const { token, logprob, top } = sampler.sample(logits)
    assert.equal(token, 6)
    assert.ok(Math.abs(logprob! - Math.log(p[6]!)) < 1e-9)
    assert.deepEqual(
      top!.map((x) => x.token),
      [4, 5, 3],
    )
    for (const x of top!) assert.ok(Math.abs(x.logprob - Math.log(p[x.token]!)) < 1e-9)
    using none = new Sampler(t, { temperature: 0, logprobs: 0 })
    assert.deepEqual(none.sample(logits).top, [])
  })

  describe('clone', () => {
    it('draws on as the original would, and is independent', () => {
      const logits = normal(10, 1)
      const params = {
        ...PLAIN,
        seed: 5,
        repeatPenalty: 1.5,
        dry: { multiplier: 1 },
        xtc: { probability: 0.5 },
        topK: 200,
      }
      const go = (s: Sampler) =>
        Array.from({ length: 20 }, () => {
          const { token } = s.sample(logits)
          s.accept(token)
          return token
        })
      using a = new Sampler(t, params)
      go(a)
      using b = a.clone()
      const first = go(a)
      assert.deepEqual(go(b), first)
      using c = a.clone({ seed: 6 })
      assert.equal(c.seed, 6)
      assert.notDeepEqual(go(c), go(a))
    })

    it('keeps penalties and grammar', () => {
      using a = new Sampler(t, { temperature: 0, repeatPenalty: 2, grammar: 'root ::= "{" "}"' })
      const [open, close] = [t.encode('{')[0]!, t.encode('}')[0]!]
      a.accept(open)
      using b = a.clone()
      a.accept(close)
      assert.deepEqual([a.allows(close), b.allows(close)], [false, true])
      assert.equal(b.sample(only({ [close]: 1 })).token, close)
    })
  })

  describe('grammar', () => {
    it('corrects a choice, ends by itself, never accepts what it forbids', () => {
      using sampler = new Sampler(t, { temperature: 0, grammar: 'root ::= "yes" | "no"' })
      const text: number[] = []
      for (;;) {
        const { token } = sampler.sample(only({ 300: 5, [t.encode('n')[0]!]: 1, [t.encode('o')[0]!]: 1 }))
        sampler.accept(token)
        if (t.isEndOfGeneration(token)) break
        text.push(token)
      }
      assert.equal(t.decode(text), 'no')
      assert.throws(() => sampler.accept(300), isCode('INVALID_ARGUMENT', /grammar does not allow/))
      assert.ok(t.isEndOfGeneration(sampler.sample(only({ 300: 5 })).token))
    })

    it('never lets markup stand for text, nor breaks a character', () => {
      using sampler = new Sampler(t, { ...PLAIN, seed: 4, grammar: 'root ::= [^a]{200}' })
      const next = random(1)
      const text: number[] = []
      for (;;) {
        // byte tokens and control tokens are favoured
        const logits = Float32Array.from({ length: n }, (_, i) => 8 * next() + (i < 263 ? 6 : 0))
        const { token } = sampler.sample(logits)
        sampler.accept(token)
        if (t.isEndOfGeneration(token)) break
        assert.ok(!t.isControl(token))
        text.push(token)
      }
      const string = t.decode(text)
      assert.equal([...string].length, 200)
      assert.ok(!string.includes('\ufffd') && !string.includes('\0') && !string.includes('a'))
    })

    it('lets markup through where the grammar names it', () => {
      const user = t.encode('<|user|>', { parseSpecial: true })[0]!
      using sampler = new Sampler(t, { temperature: 0, grammar: `root ::= <[${user}]> "a"` })
      assert.equal(sampler.sample(only({})).token, user)
    })

    it('lets no other markup through then', () => {
      const [user, system] = t.encode('<|user|><|system|>', { parseSpecial: true })
      using sampler = new Sampler(t, { grammar: `root ::= <[${user}]> .*` })
      assert.equal(sampler.allows(system!), false)
      sampler.accept(user!)
      assert.equal(sampler.allows(system!), false)
      assert.equal(sampler.allows(t.encode('<')[0]!), true)
    })

    it('says so when nothing is allowed', () => {
      using sampler = new Sampler(t, { temperature: 0, grammar: 'root ::= "a"' })
      const logits = new Float32Array(n).fill(-Infinity)
      logits[300] = 1
      assert.throws(() => sampler.sample(logits), isCode('GRAMMAR_INVALID', /allows no token/))
      const byteOfA = 7 + 0x61 // the house vocabulary has a token for each byte
      using banned = new Sampler(t, {
        temperature: 0,
        grammar: 'root ::= "a"',
        logitBias: { [t.encode('a')[0]!]: -Infinity, [byteOfA]: -Infinity },
      })
      assert.throws(() => banned.sample(only({})), isCode('INVALID_ARGUMENT', /no token is left/))
    })

    it('survives any tokens, allowed or not', () => {
      fc.assert(
        fc.property(fc.array(fc.nat(n - 1), { maxLength: 30 }), (tokens) => {
          using sampler = new Sampler(t, { grammar: 'root ::= [a-z ]+ "." | "é" root' })
          for (const token of tokens) {
            const allowed = sampler.allows(token)
            if (allowed) sampler.accept(token)
            else assert.throws(() => sampler.accept(token), isCode('INVALID_ARGUMENT'))
          }
        }),
        { numRuns: 60 },
      )
    })
  })

  describe('refuses', () => {
    it('broken logits', () => {
      for (const params of [{ temperature: 0 }, { temperature: 1 }]) {
        using sampler = new Sampler(t, params)
        const logits = only({ 1: 1 })
        for (const bad of [Number.NaN, Infinity, 1e20]) {
          logits[17] = bad
          assert.throws(() => sampler.sample(logits), isCode('NATIVE_FAILED'))
        }
        assert.throws(() => sampler.sample(new Float32Array(n).fill(-Infinity)), isCode('NATIVE_FAILED'))
        assert.throws(() => sampler.sample(new Float32Array(n - 1)), isCode('INVALID_ARGUMENT', /logits/))
      }
    })

    it('tokens outside the vocabulary', () => {
      using sampler = new Sampler(t, { repeatPenalty: 2 })
      for (const token of [-1, n, 0.5]) {
        assert.throws(() => sampler.accept(token), isCode('INVALID_ARGUMENT'))
        assert.throws(() => sampler.acceptPrompt([token]), isCode('INVALID_ARGUMENT'))
      }
    })

    it('use after dispose, its own or the tokenizer', async () => {
      const own = await Tokenizer.load(HOUSE_MODEL)
      const sampler = new Sampler(own, { grammar: 'root ::= "a"' })
      own.dispose()
      assert.throws(() => sampler.sample(only({})), isCode('DISPOSED'))
      sampler.dispose()
      sampler.dispose()
      assert.throws(() => sampler.accept(1), isCode('DISPOSED'))
    })
  })
})
