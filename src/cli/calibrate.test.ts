import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { histogram } from './calibrate-summary.ts'
import { json, kvasir } from './process.fixture.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-cli-calibrate-'))
after(() => rmSync(folder, { recursive: true }))

describe('kvasir calibrate', () => {
  it('writes a file, and shows what it found', async () => {
    const out = join(folder, 'razor.json')
    const args = ['calibrate', 'razorattention', 'house', '--period', '64', '--repeats', '3', '-t', '1']
    const done = await kvasir([...args, '--out', out])
    assert.equal(done.code, 0, done.stderr)
    assert.match(done.stdout, /^layer +KV head +induction +echo\n +1 +0 +0\.\d{4} +0\.\d{4}\n/)
    assert.match(done.stdout, /the highest is \d+ times the median/)
    assert.match(done.stdout, /\nwritten to .*razor\.json\n$/)
    assert.match(done.stderr, /note: the engine takes .*razorattention\.json first/)

    const { file, calibration } = json(await kvasir([...args, '--json'], { env: { KVASIR_CACHE: folder } }))
    assert.equal(file, join(folder, 'calibration', `${calibration.model.digest}-razorattention.json`))
    assert.deepEqual(calibration, JSON.parse(readFileSync(file, 'utf8')))
    assert.deepEqual(calibration, JSON.parse(readFileSync(out, 'utf8')))
  })

  it('shows the layers of the other two', async () => {
    const common = ['-t', '1', '--out', join(folder, 'other.json')]
    const small = ['--lengths', '256', '--limit', '1', '--tasks', 'rag', '--steps', '2']
    const compresskv = await kvasir(['calibrate', 'compresskv', ...small, ...common])
    assert.match(
      compresskv.stdout,
      /^layer +share of the error +query heads, best first\n( +\d +[\d.]+ % +[0-3 ]+\n){6}/,
    )
    const uncomp = await kvasir(['calibrate', 'uncomp', '--length', '256', '--samples', '1', ...common])
    assert.match(uncomp.stdout, /^layer +entropy +change +votes of its KV heads\n +0 +[\d.]+ +[01]\.00 [01]\.00\n/)
  })

  it('names what is wrong', async () => {
    const unknown = await kvasir(['calibrate', 'snapkv', 'house'])
    assert.equal(unknown.code, 2)
    const { code, stderr } = await kvasir(['calibrate', 'uncomp', 'house', '--length', '99999'])
    assert.equal(code, 1)
    assert.match(stderr, /length is 99999; it must be a whole number from 128 to 8192/)
  })
})

describe('a histogram', () => {
  it('counts what falls into each tenth of the highest', () => {
    const lines = histogram([1, 0.05, 0.01, 0.55]).split('\n')
    assert.equal(lines[0], `0.000  ${'#'.repeat(40)} 2`)
    assert.equal(lines[5], `0.500  ${'#'.repeat(20)} 1`)
    assert.equal(lines[9], `0.900  ${'#'.repeat(20)} 1`)
    assert.equal(lines.filter((l) => l.includes('#')).length, 3)
  })
})
