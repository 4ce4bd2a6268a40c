/** Lines typed in chats, for the arrow keys. Losing them is no reason to fail: every error here is swallowed. */
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'

const MOST_LINES = 1000

function historyFile(env = process.env): string {
  return join(env['XDG_STATE_HOME'] || join(homedir(), '.local', 'state'), 'kvasir', 'chat-history')
}

/** Newest first, as readline wants it. */
export function readHistory(): string[] {
  try {
    const lines = readFileSync(historyFile(), 'utf8').split('\n').filter(Boolean)
    const kept = lines.slice(-MOST_LINES)
    if (lines.length > 2 * MOST_LINES) writeFileSync(historyFile(), `${kept.join('\n')}\n`, { mode: 0o600 })
    return kept.reverse()
  } catch {
    return []
  }
}

/** Readable only by the user: chats can be private. */
export function appendHistory(line: string): void {
  try {
    mkdirSync(dirname(historyFile()), { recursive: true, mode: 0o700 })
    appendFileSync(historyFile(), `${line}\n`, { mode: 0o600 })
  } catch {}
}
