import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ThreadChooser } from './threads.ts'

/** Runs `steps` steps whose time depends on the thread count; how often each count was used. */
function drive(chooser: ThreadChooser, steps: number, ms: (threads: number) => number): Map<number, number> {
  const used = new Map<number, number>()
  for (let i = 0; i < steps; i++) {
    const { threads } = chooser
    used.set(threads, (used.get(threads) ?? 0) + 1)
    chooser.report(ms(threads))
  }
  return used
}

test('short steps end with the count that is fastest', () => {
  const waits = drive(new ThreadChooser(8), 200, (n) => 1 / n + 0.2 * n)
  assert.ok(waits.get(2)! > 180, JSON.stringify([...waits]))
  const pays = drive(new ThreadChooser(8), 200, (n) => 8 / n)
  assert.ok(pays.get(8)! > 180, JSON.stringify([...pays]))
})

test('counts that are clearly too small are not tried', () => {
  const used = drive(new ThreadChooser(16), 200, (n) => 160 / n)
  assert.deepEqual([...used.keys()], [16, 8])
  assert.ok(used.get(8)! <= 6, JSON.stringify([...used]))
})

test('a machine on which threads wait for a busy core is noticed within a few steps', () => {
  const used = drive(new ThreadChooser(2), 24, (n) => (n === 2 ? 350 : 1))
  assert.deepEqual(
    [...used],
    [
      [2, 4],
      [1, 20],
    ],
  )
})

test('a change of the machine is noticed', () => {
  const chooser = new ThreadChooser(2)
  drive(chooser, 100, (n) => (n === 2 ? 3 : 1))
  assert.equal(chooser.threads, 1)
  drive(chooser, 600, (n) => (n === 2 ? 0.6 : 1))
  assert.equal(chooser.threads, 2)
})

test('single slow runs change nothing', () => {
  const chooser = new ThreadChooser(2)
  let step = 0
  const used = drive(chooser, 400, (n) => (++step % 5 === 0 ? 40 : n === 2 ? 0.6 : 1))
  assert.ok(used.get(2)! > 380, JSON.stringify([...used]))
})
