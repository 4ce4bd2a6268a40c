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

test('long steps get all threads without a trial', () => {
  assert.deepEqual([...drive(new ThreadChooser(4), 50, () => 200)], [[4, 50]])
})

test('a change of the machine is noticed', () => {
  const chooser = new ThreadChooser(2)
  drive(chooser, 100, (n) => (n === 2 ? 3 : 1))
  assert.equal(chooser.threads, 1)
  drive(chooser, 600, (n) => (n === 2 ? 0.6 : 1))
  assert.equal(chooser.threads, 2)
})

test('a reset starts the trials anew', () => {
  const chooser = new ThreadChooser(2)
  drive(chooser, 20, (n) => (n === 2 ? 3 : 1))
  chooser.reset()
  assert.equal(chooser.threads, 2)
  assert.equal(drive(chooser, 20, (n) => (n === 2 ? 3 : 1)).get(2), 3)
})
