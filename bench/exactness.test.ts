/** The claim behind the default lowering: never less exact than libllama. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { liveNatives } from '../src/ggml/owned.ts'
import { type ExactnessRow, exactness } from './exactness.ts'

/** Where both do the same arithmetic in another order, either may win by chance. */
const TIE = 1.05
/** f32 sums of up to 8192 terms are off by this; below it nothing is lost that f32 could keep. */
const F32_NOISE = 1e-6

const rows = await exactness({ keys: [512, 8192] })
const show = (r: ExactnessRow) =>
  `${r.lowering} ${r.cache_type}, ${r.rows} rows of ${r.keys} keys, ${r.attention}: ${r.rms_rel_error.toExponential(1)}, ` +
  `libllama over ours ${r.better_than_libllama.toPrecision(3)}`

function isLessExact(r: ExactnessRow): boolean {
  // Written so that NaN counts as less exact.
  return !(r.better_than_libllama * TIE >= 1 || r.rms_rel_error <= F32_NOISE)
}

test('the default lowering is never less exact than libllama', () => {
  assert.deepEqual(rows.filter((r) => r.lowering === 'auto' && isLessExact(r)).map(show), [])
})

test('where the fused op sums f16 values in f16, the default does not', () => {
  const find = (lowering: string) =>
    rows.find(
      (r) =>
        r.lowering === lowering && r.keys === 8192 && r.rows === 1 && r.attention === 'flat' && r.cache_type === 'f16',
    )!
  assert.ok(find('libllama').rms_rel_error > 1e-2, show(find('libllama'))) // 6.6e-2 on one thread
  assert.ok(find('auto').rms_rel_error < 5e-5, show(find('auto'))) // 7e-6: queries and weights rounded to f16
})

test('every case is there, with finite errors', () => {
  // 2 numbers of keys, 2 of rows, 2 kinds of attention; 4 lowerings for 4 types, without `grouped` on q8_0
  assert.equal(rows.length, 2 * 2 * 2 * (4 * 4 - 1))
  assert.ok(rows.every((r) => r.rms_rel_error < 1 && r.max_rel_error >= r.rms_rel_error))
})

after(() => assert.deepEqual(liveNatives(), {}))
