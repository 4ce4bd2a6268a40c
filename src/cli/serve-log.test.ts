import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { makeLogger, textLine } from './serve-log.ts'

const time = '2026-01-02T03:04:05.678Z'

describe('lines for people', () => {
  it('have time, level, message and fields', () => {
    const line = textLine({
      time,
      level: 'info',
      msg: 'request',
      method: 'GET',
      url: '/v1/models?x',
      ms: 1.5,
      to: null,
    })
    assert.equal(line, '03:04:05.678 info  request  method=GET  url="/v1/models?x"  ms=1.5  to=null')
    assert.equal(textLine({ time, level: 'warn', msg: 'x', list: ['a', 'b c'] }), '03:04:05.678 warn  x  list=a,"b c"')
  })

  it('end with the stack of an error', () => {
    const line = textLine({ time, level: 'error', msg: 'failed', err: { message: 'no', stack: 'Error: no\n    at x' } })
    assert.equal(line, '03:04:05.678 error failed\n  Error: no\n      at x')
    assert.match(textLine({ time, level: 'error', msg: 'failed', err: 'thrown' }), /failed\n {2}thrown$/)
  })

  it('cannot be forged by what a client sends', () => {
    const evil = 'x\n03:04:05.678 info  shut down\u001b[2J'
    for (const line of [textLine({ time, level: 'info', msg: evil }), textLine({ time, level: 'info', msg: '', evil })])
      assert.doesNotMatch(line, /\p{Cc}/u)
  })
})

describe('the logger', () => {
  const logged = (level: 'info' | 'silent', format: 'json' | 'text') => {
    const lines: string[] = []
    const log = makeLogger(level, format, (line) => lines.push(line))
    log.debug('quiet')
    log.child({ reqId: 'r1' }).info({ ms: 3 }, 'done')
    log.error({ err: new Error('broken') }, 'failed')
    return lines
  }

  it('writes JSON', () => {
    const [done, failed, ...more] = logged('info', 'json').map((line) => JSON.parse(line))
    assert.deepEqual(more, [])
    assert.deepEqual({ ...done, time: 0 }, { level: 'info', time: 0, reqId: 'r1', ms: 3, msg: 'done' })
    assert.ok(Math.abs(Date.parse(done.time) - Date.now()) < 10_000)
    assert.match(failed.err.stack, /broken\n\s+at /)
  })

  it('writes text', () => {
    const [done, failed, ...more] = logged('info', 'text')
    assert.deepEqual(more, [])
    assert.match(done!, /^\d\d:\d\d:\d\d\.\d{3} info {2}done {2}reqId=r1 {2}ms=3\n$/)
    assert.match(failed!, /error failed\n {2}Error: broken\n {6}at .*\n$/s)
  })

  it('can be silent', () => assert.deepEqual(logged('silent', 'text'), []))
})
