/** Where Kvasir keeps what it can fetch or make again. */
import { homedir } from 'node:os'
import { join } from 'node:path'

/** `$KVASIR_CACHE`, else `$XDG_CACHE_HOME/kvasir`, else `~/.cache/kvasir`. */
export function cacheFolder(env = process.env): string {
  return env['KVASIR_CACHE'] || join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'kvasir')
}
