/** The README's first command: it builds what it must, serves, passes arguments on, and Ctrl-C lets answers end. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gone, knowsChildren } from '../src/cli/process.fixture.ts'

const root = fileURLToPath(new URL('..', import.meta.url))

test('npm start', { timeout: 120_000, skip: knowsChildren ? false : 'no /proc here' }, async () => {
  // In a process group of its own: a terminal sends Ctrl-C to all of it.
  const npm = spawn('npm', ['start', '--silent', '--', '--port', '0', '-t', '1', '--json'], {
    ...{ cwd: root, detached: true, stdio: ['ignore', 'pipe', 'inherit'] },
  })
  const exited = once(npm, 'exit')
  try {
    const [line] = await once(npm.stdout!.setEncoding('utf8'), 'data')
    const { url, models, pid } = JSON.parse(line)
    assert.deepEqual(models, ['house'])
    const messages = [{ role: 'user', content: 'Hello' }]
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ messages, max_tokens: 300, stream: true, grammar: 'root ::= [a-z]{1900}' }),
    })
    assert.equal(answer.status, 200)
    process.kill(-npm.pid!, 'SIGINT')
    assert.match(await answer.text(), /data: \[DONE\]\n\n$/)
    await exited
    await gone([pid])
  } finally {
    if (npm.exitCode === null && npm.signalCode === null) process.kill(-npm.pid!, 'SIGKILL')
  }
})
