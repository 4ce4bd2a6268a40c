import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { KvasirError } from '../../contract/errors.ts'
import { StopMatcher } from './stop.ts'

/** What the whole text gives: the stop string that ends first, the longest of those. */
function naive(text: string, stops: readonly string[]): { emit: string; stopped: string | null } {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((s) => text.slice(0, end).endsWith(s)).sort((a, b) => b.length - a.length)[0]
    if (found !== undefined) return { emit: text.slice(0, end - found.length), stopped: found }
  }
  return { emit: text, stopped: null }
}

describe('StopMatcher', () => {
  it('finds a stop string split over pieces and holds back no more than needed', () => {
    const m = new StopMatcher(['\nUser:', 'END'])
    assert.deepEqual(m.feed('Hello\nUs'), { emit: 'Hello', stopped: null })
    assert.equal(m.held, '\nUs')
    assert.deepEqual(m.feed('eful E'), { emit: '\nUseful ', stopped: null })
    assert.deepEqual(m.feed('N'), { emit: '', stopped: null })
    assert.deepEqual(m.feed('D of it'), { emit: '', stopped: 'END' })
    assert.deepEqual(m.feed('more'), { emit: '', stopped: 'END' })
    assert.equal(m.flush(), '')
  })

  it('gives what it held when the text ends', () => {
    const m = new StopMatcher(['abc'])
    m.feed('xab')
    assert.equal(m.flush(), 'ab')
  })

  it('equals a search of the whole text, for any cuts', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'é', '😀') })
    const stops = fc.array(
      letters.filter((s) => s !== ''),
      { maxLength: 4 },
    )
    fc.assert(
      fc.property(fc.array(letters, { maxLength: 12 }), stops, (pieces, stops) => {
        const m = new StopMatcher(stops)
        let emit = ''
        let stopped: string | null = null
        for (const piece of pieces) {
          const result = m.feed(piece)
          emit += result.emit
          stopped = result.stopped
          const longest = [...stops].map((s) => prefixAtEnd(emit + m.held, s)).reduce((a, b) => Math.max(a, b), 0)
          if (stopped === null) assert.equal(m.held.length, longest)
        }
        if (stopped === null) emit += m.flush()
        assert.deepEqual({ emit, stopped }, naive(pieces.join(''), stops))
      }),
      { numRuns: 3000 },
    )
  })

  it('refuses what cannot be matched', () => {
    const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT'
    for (const bad of ['', '\ud83d', 5 as unknown as string])
      assert.throws(() => new StopMatcher(['ok', bad]), isInvalid)
  })
})

function prefixAtEnd(text: string, stop: string): number {
  for (let n = stop.length - 1; n > 0; n--) if (text.endsWith(stop.slice(0, n))) return n
  return 0
}
