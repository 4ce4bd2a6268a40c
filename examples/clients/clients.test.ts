/** Each example as a user runs it: a process of its own against a server. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { after, before, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { startHouse } from '../../src/server/server.fixture.ts'

type House = Awaited<ReturnType<typeof startHouse>>
let server: House
before(async () => {
  server = await startHouse()
})
after(() => server.close())

async function run(file: string): Promise<string> {
  const path = fileURLToPath(new URL(file, import.meta.url))
  const env = { ...process.env, KVASIR_URL: server.url }
  const child = spawn(process.execPath, ['--import', 'tsx', path], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const [out, err, code] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    new Promise((resolve) => child.on('exit', resolve)),
  ])
  assert.equal(code, 0, err)
  return out
}

const EXPECTED: Readonly<Record<string, RegExp>> = {
  'openai.ts':
    /rabbit[\s\S]*\d+ prompt tokens, \d+ generated\ncall: feed\(\{\s*"animal":\s*"(cat|dog|rabbit)"\s*\}\)\n$/,
  'ai-sdk.ts': /rabbit[\s\S]*object: \{ animal: '(cat|dog|rabbit)' \}\n$/,
  'fetch.ts': /rabbit/,
  'langchain.ts': /\S/,
}

describe('examples of clients', () => {
  for (const [file, expected] of Object.entries(EXPECTED)) it(file, async () => assert.match(await run(file), expected))
})
