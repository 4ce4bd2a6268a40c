/** Files of measurements: found where they should be, and trusted only when they are of this model and whole. */
import assert from 'node:assert/strict'
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import {
  type CalibrationFile,
  calibrationPlaces,
  describeCalibrated,
  findCalibration,
  parseCalibration,
  readCalibration,
  writeCalibration,
} from './calibrations.ts'
import { LocalEngine } from './local.ts'
import { modelPath } from './options.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-calibrations-'))
const HOUSE = modelPath('house')
const SHIPPED = join(dirname(HOUSE), 'calibration')
let engine: LocalEngine
before(async () => {
  engine = await LocalEngine.load('house', { threads: 1, contextLength: 512 })
})
after(async () => {
  await engine.dispose()
  rmSync(folder, { recursive: true })
})

const POLICIES = ['razorattention', 'compresskv', 'uncomp'] as const
const shipped = (policy: string): CalibrationFile => JSON.parse(readFileSync(join(SHIPPED, `${policy}.json`), 'utf8'))

describe('finding', () => {
  for (const policy of POLICIES)
    it(`${policy}: the house model's comes with it`, async () => {
      assert.deepEqual(await findCalibration(policy, engine.model, HOUSE), shipped(policy).calibration)
    })

  it('in the cache folder, by the digest; not one of another model that lies beside', async () => {
    const elsewhere = join(folder, 'model', 'm.gguf')
    mkdirSync(join(folder, 'model'))
    copyFileSync(HOUSE, elsewhere)
    const { digest } = await describeCalibrated(engine.model)
    const before = process.env['KVASIR_CACHE']
    process.env['KVASIR_CACHE'] = join(folder, 'cache')
    try {
      assert.equal(await findCalibration('uncomp', engine.model, elsewhere), null)
      const [beside, cached] = calibrationPlaces('uncomp', digest, elsewhere)
      const file = shipped('uncomp')
      writeCalibration(beside, { ...file, model: { ...file.model, digest: 'another' } })
      assert.equal(await findCalibration('uncomp', engine.model, elsewhere), null)
      writeCalibration(cached, file)
      assert.deepEqual(await findCalibration('uncomp', engine.model, elsewhere), file.calibration)
    } finally {
      if (before === undefined) delete process.env['KVASIR_CACHE']
      else process.env['KVASIR_CACHE'] = before
    }
  })

  it('a given file must be of this model and policy', async () => {
    const path = join(folder, 'given.json')
    const file = shipped('razorattention')
    writeCalibration(path, file)
    const find = () => findCalibration('razorattention', engine.model, HOUSE, path)
    assert.deepEqual(await find(), file.calibration)
    await assert.rejects(findCalibration('uncomp', engine.model, HOUSE, path), {
      code: 'INVALID_ARGUMENT',
      message: /is for razor/,
    })
    writeCalibration(path, { ...file, model: { ...file.model, digest: '00' } })
    await assert.rejects(find(), { code: 'INVALID_ARGUMENT', message: /another model/ })
    await assert.rejects(findCalibration('uncomp', engine.model, HOUSE, join(folder, 'none')), {
      code: 'INVALID_ARGUMENT',
      message: /could not be read/,
    })
  })
})

describe('reading', () => {
  it('gives back what was written', () => {
    for (const policy of POLICIES) {
      const path = join(folder, 'deep', `${policy}.json`)
      writeCalibration(path, shipped(policy))
      assert.deepEqual(readCalibration(path), shipped(policy))
    }
  })

  it('refuses what is damaged, and says where', () => {
    const file = shipped('compresskv')
    const uncomp = shipped('uncomp')
    assert.ok(file.calibration.policy === 'compresskv' && uncomp.calibration.policy === 'uncomp')
    const { heads, layerShares } = file.calibration
    const wrong: readonly [object | string, RegExp][] = [
      ['{', /not JSON/],
      ['[]', /no calibration file/],
      [{ ...file, kvasir: 'x' }, /no calibration file/],
      [{ ...file, version: 2 }, /version 2/],
      [{ ...file, model: { ...file.model, layers: 0 } }, /"model"/],
      [{ ...file, made: null }, /"made"/],
      [{ ...file, calibration: { policy: 'snapkv' } }, /snapkv/],
      [{ ...file, calibration: { ...file.calibration, heads: heads.slice(1) } }, /"heads"/],
      [{ ...file, calibration: { ...file.calibration, heads: heads.map(() => [0, 0, 1, 2]) } }, /"heads"/],
      [{ ...file, calibration: { ...file.calibration, layerShares: layerShares.map((x) => 2 * x) } }, /"layerShares"/],
      [{ ...uncomp, calibration: { ...uncomp.calibration, headVotes: [[2, 0]] } }, /"headVotes"/],
      [{ ...uncomp, calibration: { ...uncomp.calibration, layerEntropies: ['1'] } }, /"layerEntropies"/],
    ]
    for (const [content, message] of wrong) {
      const text = typeof content === 'string' ? content : JSON.stringify(content)
      assert.throws(() => parseCalibration(text, 'f.json'), { code: 'INVALID_ARGUMENT', message }, text.slice(0, 80))
    }
  })
})

it('a damaged file ends the request with its name; mended, the next one is served', async () => {
  const copy = join(folder, 'house', 'm.gguf')
  mkdirSync(join(folder, 'house', 'calibration'), { recursive: true })
  copyFileSync(HOUSE, copy)
  await using own = await LocalEngine.load(copy, { threads: 1, contextLength: 256 })
  const ask = async () => {
    for await (const part of own.generate({
      prompt: 'One two three four. '.repeat(20),
      policy: 'compresskv',
      budget: 0.5,
      maxTokens: 1,
    }))
      if (part.kind === 'end') return part.timings.kv_bytes
    return 0
  }
  const path = join(folder, 'house', 'calibration', 'compresskv.json')
  writeFileSync(path, '{}')
  await assert.rejects(ask(), { code: 'INVALID_ARGUMENT', message: /compresskv\.json is no calibration file/ })
  copyFileSync(join(SHIPPED, 'compresskv.json'), path)
  assert.ok((await ask()) > 0)
})
