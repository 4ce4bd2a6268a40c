/** The measurements on the house model, on short texts. The formulas by hand: formulas.test.ts. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { writeRandomModel } from '../../../bench/random-model.ts'
import type { Calibration, RazorAttentionCalibration } from '../../contract/calibration.ts'
import { parseCalibration } from '../../engine/calibrations.ts'
import { modelPath } from '../../engine/options.ts'
import { loadNative } from '../../ggml/library.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { Draw } from '../tasks/draw.ts'
import { tasksNamed } from '../tasks/index.ts'
import { compresskv, headScores } from './compresskv.ts'
import { layerErrors } from './layer-error.ts'
import { calibrate, type Measurement } from './measurement.ts'
import { needleScores } from './needle-heads.ts'
import { measureCopies, randomTokens, razorattention } from './razorattention.ts'
import { Subject } from './subject.ts'
import { needlePrompt, spanOf, taskPrompt, taskText } from './texts.ts'
import { uncomp } from './uncomp.ts'

const HOUSE = modelPath('house')
const LAYERS = 6
const folder = mkdtempSync(join(tmpdir(), 'kvasir-calibrate-'))
let subject: Subject
let natives: Record<string, number>
before(async () => {
  await loadNative()
  natives = liveNatives()
  subject = await Subject.load(HOUSE, 1024, { threads: 1 })
})
after(() => {
  subject[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

async function measured<S extends object>(of: Measurement<S>, given: Partial<S>): Promise<Calibration> {
  const file = await calibrate(of, HOUSE, given, { threads: 1 })
  // What is written can be read.
  return parseCalibration(JSON.stringify(file), 'test').calibration
}

const median = (list: readonly number[]) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]!

describe('texts', () => {
  it('know where the needle stands among their tokens', () => {
    const { tokenizer } = subject.model
    for (const depth of [0, 0.5, 1]) {
      const { tokens, span, needle } = needlePrompt(tokenizer, 1, 256, depth)
      const inside = (from: number, to: number) => tokenizer.decode(tokens.subarray(from, to)).includes(needle)
      assert.ok(inside(span.from, span.to))
      assert.ok(!inside(span.from + 1, span.to) && !inside(span.from, span.to - 1), 'no token too many')
    }
    assert.throws(
      () => spanOf(tokenizer, tokenizer.encode('one two one'), 'one'),
      /"one" comes more than once out of the tokens/,
    )
  })

  it('are other ones for other seeds, and of the length asked for', () => {
    const { tokenizer } = subject.model
    const [rag] = tasksNamed(['rag'])
    assert.notDeepEqual(taskPrompt(tokenizer, rag!, 0, 512), taskPrompt(tokenizer, rag!, 1, 512))
    assert.equal(taskText(tokenizer, rag!, 0, 512).length, 512)
  })
})

describe('razorattention', () => {
  const copiesOf = (seed: number) => randomTokens(subject.model.tokenizer, 96, seed)
  const highest = ({ echo, induction }: RazorAttentionCalibration) => Math.max(...induction.flat(), ...echo.flat())

  it('finds the one head that looks copies up, whichever the tokens', async () => {
    for (const seed of [0, 1]) {
      const found = await measured(razorattention, { period: 96, repeats: 3, seed })
      assert.ok(found.policy === 'razorattention')
      const all = found.induction.flat()
      const [head] = found.induction[1]!
      assert.ok(head! > 0.5 && head === Math.max(...all) && head > 5 * median(all), JSON.stringify(found.induction))
    }
  })

  it('finds nothing where copies are shuffled, or of other tokens', async () => {
    const copy = copiesOf(0)
    const r = new Draw('shuffled')
    // Of 96 to 288 rows one or two are asked about.
    for (const others of [
      [r.shuffle(copy), r.shuffle(copy)],
      [copiesOf(1), copiesOf(2)],
    ])
      assert.ok(highest(await measureCopies(subject, [copy, ...others])) < 0.1)
  })

  it('tells of its progress, and stops when told to', async () => {
    const copy = copiesOf(0).slice(0, 8)
    const seen: string[] = []
    await measureCopies(subject, [copy, copy], { onProgress: (done, of) => seen.push(`${done} of ${of}`) })
    assert.deepEqual([seen.length, seen[0], seen.at(-1)], [8, '1 of 8', '8 of 8'])
    await assert.rejects(measureCopies(subject, [copy, copy], { signal: AbortSignal.abort() }), { code: 'ABORTED' })
  })
})

describe('compresskv', () => {
  const small = { lengths: [256], limit: 2, tasks: ['niah_single', 'rag'], steps: 8 }

  it('ranks heads, and gives each layer a share of the error', async () => {
    const found = await measured(compresskv, small)
    assert.ok(found.policy === 'compresskv')
    // The query heads of the KV head that looks copies up.
    assert.deepEqual(found.heads[1]!.slice(0, 2).toSorted(), [0, 1])
    assert.ok(found.layerShares.length === LAYERS && found.layerShares.every((share) => share > 0))
    assert.deepEqual(await measured(compresskv, small), found)
  })

  it('scores heads highest where they look copies up', async () => {
    const settings = compresskv.complete({ lengths: [256], limit: 4 }, subject.model.config)
    const best = (await headScores(subject, settings, () => {})).map((layer) => Math.max(...layer))
    assert.equal(best.indexOf(Math.max(...best)), 1, JSON.stringify(best))
  })

  it('sees no error where everything is kept, and some where not', async () => {
    const heads = Array.from({ length: LAYERS }, () => [0, 1, 2, 3])
    const { tokens } = needlePrompt(subject.model.tokenizer, 0, 256, 0.5)
    assert.deepEqual([...(await layerErrors(subject, tokens.subarray(0, 32), heads, 4))], new Array(LAYERS).fill(0))
    assert.ok((await layerErrors(subject, tokens, heads, 4)).every((e) => e > 0))
  })

  it('counts only answers that hold the needle', async () => {
    const prompt = needlePrompt(subject.model.tokenizer, 0, 256, 0.5)
    assert.ok(await needleScores(subject, prompt))
    assert.equal(await needleScores(subject, { ...prompt, needle: 'Nobody says so.' }), null)
  })

  it('is refused where the vocabulary loses the needle', async () => {
    const path = join(folder, 'random.gguf')
    await writeRandomModel(path, {
      ...{ name: 'random', architecture: 'llama', layers: 2, width: 64, heads: 4, kvHeads: 2, headDim: 16 },
      ...{ ffWidth: 64, vocab: 512, type: 'f16', tied: true },
    })
    await assert.rejects(calibrate(compresskv, path, { lengths: [2048], limit: 1 }, { threads: 1 }), {
      code: 'MODEL_UNSUPPORTED',
      message: /comes not out of the tokens/,
    })
  })
})

describe('uncomp', () => {
  it('gives entropies that d / 4 directions can have, and votes that are shares', async () => {
    const found = await measured(uncomp, { length: 256, samples: 2 })
    assert.ok(found.policy === 'uncomp')
    const { heads, headDim: d } = subject.model.config
    // Of d eigenvalues d / 4 count: most when each of them is 4 / d.
    for (const entropy of found.layerEntropies) assert.ok(entropy > 0 && entropy < heads * Math.log(d / 4))
    // One of the two KV heads of a layer is its upper half.
    for (const votes of found.headVotes) assert.equal(votes[0]! + votes[1]!, 1)
  })

  it('reads the same queries layer by layer as all at once', async () => {
    const { model, executor } = subject
    const tokens = taskText(model.tokenizer, tasksNamed(['rag'])[0]!, 0, 300)
    const byLayer: Float32Array[] = []
    {
      using text = subject.begin()
      await text.readByLayer(tokens, (_, queries) => byLayer.push(queries.slice()))
    }
    const sequence = executor.store.create(tokens.length)
    const positions = Int32Array.from(tokens, (_, i) => i)
    executor.store.append(sequence, positions)
    const { items } = await executor.run({
      items: [
        {
          sequence: sequence.id,
          positions,
          store: { kind: 'tail' },
          layers: { from: 0, to: LAYERS },
          input: { kind: 'tokens', tokens },
          outputs: { logits: [], hidden: false, queries: true },
          mask: { kind: 'causal' },
        },
      ],
    })
    executor.store.free(sequence)
    for (const [layer, queries] of items[0]!.queries!.entries()) {
      const off = Math.max(...queries.map((x, i) => Math.abs(x - byLayer[layer]![i]!)))
      assert.ok(off < 1e-3, `layer ${layer} is off by ${off}`)
    }
  })
})

describe('settings', () => {
  it('fit the model by default', () => {
    const { config } = subject.model
    assert.deepEqual(razorattention.complete({}, config), { period: 2047, repeats: 4, seed: 0 })
    assert.equal(uncomp.complete({}, config).length, 4096)
    assert.deepEqual(compresskv.complete({}, config).lengths, [512, 1024, 2048])
  })

  it('are refused where they do not', () => {
    const { config } = subject.model
    assert.throws(() => razorattention.complete({ period: 2048 }, config), /period is 2048; .* from 2 to 2047/)
    assert.throws(() => razorattention.complete({ repeats: 1 }, config), /repeats is 1/)
    assert.throws(() => uncomp.complete({ length: 9000 }, config), /length is 9000/)
    assert.throws(() => uncomp.complete({ samples: 0 }, config), /samples is 0/)
    assert.throws(() => compresskv.complete({ lengths: [8000] }, config), /length is 8000/)
    assert.throws(() => compresskv.complete({ lengths: [] }, config), /at least one length/)
    assert.throws(() => compresskv.complete({ tasks: ['rga'] }, config), /Did you mean rag/)
  })
})
