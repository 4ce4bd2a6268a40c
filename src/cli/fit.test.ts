import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import type { KvasirError } from '../contract/errors.ts'
import { LocalEngine } from '../engine/local.ts'
import { completeOptions, type EngineOptions, modelPath } from '../engine/options.ts'
import type { Device } from '../ggml/device.ts'
import { Model } from '../model/model.ts'
import { parseBytes } from './bytes.ts'
import { type Fit, fit, type Judgement, judge, type Place } from './fit.ts'
import { showFit } from './show-fit.ts'

const house = modelPath('house')
const MIB = 2 ** 20
const fitOf = (o: EngineOptions) => fit(house, completeOptions({ threads: 1, ...o }))

describe('fit: the figures are those of the engine', () => {
  const cases: EngineOptions[] = [
    {},
    { contextLength: 1000, tokenBudget: 128 },
    { contextLength: 512, kvMemory: 10 * MIB, keyType: 'q8_0', valueType: 'q4_0' },
    { kvMemory: 5 * MIB },
    { contextLength: 300, kvMemory: 8 * MIB, hostCacheBytes: 3 * MIB, keyType: 'iq4_nl', valueType: 'f32' },
  ]
  for (const options of cases)
    it(JSON.stringify(options), async () => {
      const plan = await fitOf(options)
      using engine = await LocalEngine.load('house', { threads: 1, ...options })
      const { info, store } = engine
      assert.equal(plan.fits, true)
      assert.equal(plan.context, info.contextLength)
      assert.equal(plan.pages, store.home.pages)
      assert.equal(plan.kv_tokens, store.home.cells)
      assert.equal(plan.kv_bytes, info.kvMemory + (options.hostCacheBytes ?? 0))
      assert.equal(plan.kv_bytes_per_token, info.kvBytesPerToken)
      assert.equal(
        plan.weights_bytes,
        info.weights.reduce((sum, w) => sum + w.bytes, 0),
      )
    })

  it('also where the engine is refused', async () => {
    const huge: EngineOptions = { contextLength: 2 ** 24, valueType: 'f32', tokenBudget: 4096 }
    const plan = await fitOf(huge)
    assert.equal(plan.problem?.kind, 'memory')
    await assert.rejects(LocalEngine.load('house', huge), (error: KvasirError) => {
      assert.equal(error.code, 'OUT_OF_MEMORY')
      assert.equal(error.details['neededBytes'], plan.needed_bytes)
      return true
    })
    const small: EngineOptions = { kvMemory: 100_000 }
    const less = await fitOf(small)
    assert.equal(less.problem?.kind, 'kv-memory')
    await assert.rejects(LocalEngine.load('house', small), (error: KvasirError) => {
      assert.equal(error.code, 'KV_BUDGET')
      assert.equal(error.details['neededBytes'], less.problem?.kind === 'kv-memory' && less.problem.needed_bytes)
      return true
    })
    await assert.rejects(fit('/no/such.gguf', completeOptions({})), { code: 'MODEL_NOT_FOUND' })
  })
})

describe('fit: what would', () => {
  let place: Place
  /** 3 KiB a token in f16. */
  before(() => {
    const { config } = Model.describe(house)
    const device = { kind: 'cpu', name: 'CPU' } as Device
    place = { config, device, weightsBytes: 64 * MIB, bitsPerWeight: 16, freeBytes: 200 * MIB }
  })

  const judged = (o: EngineOptions, change: Partial<Place> = {}) => judge({ ...place, ...change }, completeOptions(o))
  const flagsOf = (j: Judgement) => j.mends.flatMap((m) => (m.kind === 'flags' ? [m.flags] : []))
  /** The options that a line of flags stands for. */
  const typed = (flags: string): EngineOptions => {
    const words = flags.split(' ')
    const value = (flag: string) => words[words.indexOf(flag) + 1]!
    return {
      ...(flags.includes('--context') ? { contextLength: Number(value('--context')) } : {}),
      ...(flags.includes('--kv-memory') ? { kvMemory: parseBytes(value('--kv-memory')) } : {}),
      ...(flags.includes('--token-budget') ? { tokenBudget: Number(value('--token-budget')) } : {}),
      ...(flags.includes('--cache-type-k')
        ? {
            keyType: value('--cache-type-k') as NonNullable<EngineOptions['keyType']>,
            valueType: value('--cache-type-v') as NonNullable<EngineOptions['valueType']>,
          }
        : {}),
    }
  }

  it('helps, each by itself, and no larger value does', () => {
    const tight: [EngineOptions, Partial<Place>, RegExp[]][] = [
      [{ contextLength: 40000 }, {}, [/^--context \d+$/, /^--cache-type-k q/]],
      [{ contextLength: 4096, kvMemory: 190 * MIB }, {}, [/^--kv-memory \d+MiB$/]],
      [
        { contextLength: 4096, kvMemory: 10 * MIB },
        {},
        [/^--context 3328$/, /^--cache-type-k q8_0/, /^--kv-memory 12MiB$/],
      ],
      [{ contextLength: 200000, kvMemory: 2 ** 40 }, {}, [/^--context \d+ --kv-memory \d+MiB$/]],
      [{ kvMemory: 1000 }, {}, [/^--kv-memory 1MiB$/]],
      [{ contextLength: 10_000_000 }, { freeBytes: 2 ** 50, weightsBytes: MIB }, [/^--context \d+$/, /^--kv-memory/]],
      [{ tokenBudget: 4096 }, { freeBytes: 150 * MIB }, [/^--token-budget 256$/]],
    ]
    for (const [options, change, expected] of tight) {
      const result = judged(options, change)
      const said = `${JSON.stringify(options)}: ${JSON.stringify(result.mends)}`
      assert.equal(result.fits, false, said)
      for (const line of expected)
        assert.ok(
          flagsOf(result).some((f) => line.test(f)),
          `${line} in ${said}`,
        )
      for (const flags of flagsOf(result)) {
        const mended = typed(flags)
        assert.equal(judged({ ...options, ...mended }, change).fits, true, `${flags} for ${said}`)
        if (mended.contextLength && !mended.kvMemory)
          assert.equal(judged({ ...options, contextLength: mended.contextLength + 256 }, change).fits, false, said)
      }
    }
  })

  it('names a quantisation that is small enough', () => {
    const result = judged({ contextLength: 2048 }, { weightsBytes: 300 * MIB })
    const [mend] = result.mends.filter((m) => m.kind === 'quantisation')
    assert.equal(mend?.type, 'q8_0')
    assert.equal(judged({ contextLength: 2048 }, { weightsBytes: mend!.weights_bytes }).fits, true)
    // Already at 4 bits, and far too large.
    assert.deepEqual(judged({}, { weightsBytes: 2 ** 34, bitsPerWeight: 4.5 }).mends, [])
  })

  it('says how many sequences of what length there is room for', () => {
    const { capacity, sequences_of_context, kv_tokens } = judged({
      contextLength: 4096,
      kvMemory: 24 * MIB,
      maxSequences: 3,
    })
    assert.equal(kv_tokens, 8192)
    assert.equal(sequences_of_context, 2)
    assert.deepEqual(
      capacity.map((c) => [c.sequences, c.context]),
      [
        [1, 8192],
        [2, 4096],
        [3, 2720],
      ],
    )
    for (const { sequences, most_context, most_kv_memory_bytes } of capacity) {
      const most = judged({ contextLength: most_context, kvMemory: most_kv_memory_bytes })
      assert.equal(most.fits, true)
      assert.ok(most.sequences_of_context >= sequences)
    }
  })

  it('refuses cache types that do not go into the heads', () => {
    const config = { ...place.config, headDim: 80 }
    assert.throws(() => judged({ keyType: 'q8_0' }, { config }), { code: 'INVALID_ARGUMENT' })
    // And does not offer them.
    assert.ok(!flagsOf(judged({ contextLength: 65536 }, { config })).some((f) => f.includes('cache-type')))
  })

  it('is readable', () => {
    const base = {
      file: 'm.gguf',
      device: 'CPU',
      model_context: 8192,
      cache_type_k: 'f16',
      cache_type_v: 'f16',
    } as const
    const show = (o: EngineOptions, change: Partial<Place> = {}) =>
      showFit({ ...base, token_budget: 512, max_sequences: 16, ...judged(o, change) } satisfies Fit)
    assert.match(
      show({}),
      /\n {2}KV memory holds 1 sequence of 8192 tokens at once\n\nfits: needs [\d.]+ MiB, 200 MiB are free\n$/,
    )
    assert.match(
      show({ contextLength: 65536 }),
      /\(the model was trained for 8192\).*\ndoes not fit: needs \d+ MiB, 200 MiB are free\. What would, each by itself:\n {2}--context \d+\n/s,
    )
    assert.match(
      show({ kvMemory: 1000 }),
      /does not fit: the smallest cache needs 768 KiB of KV memory, --kv-memory is 1000 B\./,
    )
    assert.match(show({}, { weightsBytes: 2 ** 34, bitsPerWeight: 4 }), /No setting mends that: take a smaller model/)
  })
})
