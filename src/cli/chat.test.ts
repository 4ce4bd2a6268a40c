import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { gone, hasTerminal, knowsChildren, kvasir, Running } from './process.fixture.ts'

const FACT = 'The secret code for Anna is 4711.'
const QUESTION = 'What is the secret code for Anna?'
const CHAT = ['chat', '-t', '1', '--temperature', '0']

let folder: string
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'kvasir-chat-'))
  // Endless enough to be stopped, visible from the first token on, and never the end of an answer.
  writeFileSync(join(folder, 'long.gbnf'), 'root ::= l l l l l l l l\nl ::= [a-z]{1900}\n')
})
after(() => rmSync(folder, { recursive: true }))
const env = () => ({ XDG_STATE_HOME: folder })
const endless = () => ['--grammar', join(folder, 'long.gbnf')]

describe('kvasir chat without a terminal', () => {
  it('takes each line as a turn, and remembers', async () => {
    const stdin = `${FACT}\\\n${QUESTION}\n\nTell me the secret code of Anna.\n`
    const done = await kvasir(CHAT, { stdin, env: env() })
    assert.equal(done.code, 0, done.stderr)
    assert.equal(done.stdout, `${FACT}\nThe secret code of Anna is 4711.\n`)
    assert.equal(done.stderr, '')
  })

  it('knows commands', async () => {
    const saved = join(folder, 'saved.json')
    const lines = [
      '/system Be brief.',
      `${FACT} ${QUESTION}`,
      `/save ${saved}`,
      '/stats',
      '/clear',
      `/save ${saved}2.json`,
    ]
    const more = ['/system', '/hlep', '/save', '/system -', '/help', '/exit', 'never sent']
    const done = await kvasir(CHAT, { stdin: `${[...lines, ...more].join('\n')}\n`, env: env() })
    assert.equal(done.stdout, `${FACT}\n`)
    assert.deepEqual(JSON.parse(readFileSync(saved, 'utf8')), [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: `${FACT} ${QUESTION}` },
      { role: 'assistant', content: FACT },
    ])
    assert.equal(JSON.parse(readFileSync(`${saved}2.json`, 'utf8')).length, 1)
    assert.match(done.stderr, /context: \d+ of 8192 tokens; KV cache: /)
    assert.match(done.stderr, /system: Be brief\./)
    assert.match(done.stderr, /error: .*no command \/hlep; did you mean \/help\?/)
    assert.match(done.stderr, /\/save needs a file/)
    // Something failed, and nobody was there to see it.
    assert.equal(done.code, 1)
  })

  it('says when the context is full, before and during an answer', async () => {
    const long = 'word '.repeat(300)
    const stdin = `${FACT} ${QUESTION}\n${long}\nTell me the secret code of Anna.\n`
    const over = await kvasir([...CHAT, '-c', '256'], { stdin, env: env() })
    assert.match(over.stderr, /error: CONTEXT_OVERFLOW: .* \d+ tokens, and the context holds 256\..*not sent\. \/clear/)
    assert.equal(over.stdout, `${FACT}\nThe secret code of Anna is 4711.\n`)
    const full = await kvasir([...CHAT, '-c', '64', ...endless()], { stdin: 'x\n', env: env() })
    assert.match(full.stderr, /\(cut off: the context of 64 tokens is full\. \/clear starts afresh/)
  })

  it('Ctrl-C stops the answer, not the program', async () => {
    const running = new Running([...CHAT, ...endless()], { env: env() })
    running.write('x\n')
    await running.until((r) => r.stdout.length > 10)
    running.child.kill('SIGINT')
    await running.until((r) => r.stderr.includes('(stopped;'))
    running.write('/stats\n')
    await running.until((r) => r.stderr.includes('KV cache'))
    running.child.kill('SIGINT')
    await running.until((r) => r.stderr.includes('(Ctrl-C again'))
    const children = knowsChildren ? running.children() : []
    running.child.kill('SIGINT')
    assert.equal((await running.end()).code, 0)
    await gone(children)
  })
})

describe('kvasir chat on a terminal', { skip: hasTerminal ? false : 'no util-linux script here' }, () => {
  const start = async (args: string[] = []) => {
    const running = new Running([...CHAT, ...args], { env: env(), terminal: true })
    await running.until((r) => r.stdout.includes('> '))
    return running
  }
  /** Prints and then waits for the answer to it. */
  const type = async (r: Running, text: string, answer: RegExp) => {
    r.stdout = ''
    r.write(text)
    await r.until(() => answer.test(r.stdout))
  }

  it('takes long messages line by line, and brings earlier ones back', async () => {
    const chat = await start()
    await type(chat, `${FACT}\\\r`, /\. /)
    await type(chat, `${QUESTION}\r`, /\r\nThe secret code for Anna is 4711\.\r\n[^\n]*> /)
    await type(chat, '\x1b[A', /What is the secret code/)
    await type(chat, '\x03', /\r\n[^\n]*> /)
    // Ctrl-D.
    chat.write('\x04')
    assert.equal((await chat.end()).code, 0)
    assert.equal(readFileSync(join(folder, 'kvasir', 'chat-history'), 'utf8'), `${FACT}\\\n${QUESTION}\n`)
    const later = await start()
    await type(later, '\x1b[A', /What is the secret code/)
    later.write('\x15/exit\r')
    assert.equal((await later.end()).code, 0)
  })

  it('Ctrl-C stops an answer, keeps what was typed meanwhile, and leaves when pressed twice', async () => {
    const chat = await start(endless())
    await type(chat, 'x\r', /\r\n[a-z]{10}/)
    chat.write('typed ahead')
    await type(chat, '\x03', /\(stopped;[^>]*> typed ahead/)
    await type(chat, '\x03', /\r\n[^\n]*> /)
    await type(chat, '\x03', /Ctrl-C again or Ctrl-D leaves/)
    chat.write('\x03')
    assert.equal((await chat.end()).code, 0)
  })
})
