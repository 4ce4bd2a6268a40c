/**
 * `GET /`: the page, from memory. It and its two files need no key: they hold nothing that is not public, and the page asks
 * for a key when the API does.
 */
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { packageRoot } from '../../version.ts'

const FILES = [
  ['/', 'index.html', 'text/html; charset=utf-8'],
  ['/page.js', 'page.js', 'text/javascript; charset=utf-8'],
  ['/page.css', 'page.css', 'text/css; charset=utf-8'],
] as const

const HEADERS = {
  // Nothing but this server's own files, and no text that becomes code or markup.
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; " +
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'permissions-policy': 'camera=(), microphone=(), geolocation=()',
  'cache-control': 'no-cache',
} as const

const NOT_BUILT = `The page is not built. In a checkout, 'npm run build' or 'npm start' builds it.
The API is at /v1, its description at /openapi.json.
`

export function pageRoutes(app: FastifyInstance, folder = join(packageRoot(), 'dist', 'page')): void {
  for (const [url, name, type] of FILES) {
    const path = join(folder, name)
    const body = existsSync(path) ? readFileSync(path) : null
    const etag = body && `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"`
    app.get(url, { config: { open: true }, schema: { hide: true } }, async (request, reply) => {
      reply.headers(HEADERS)
      if (!body || !etag) return reply.code(404).type('text/plain; charset=utf-8').send(NOT_BUILT)
      reply.header('etag', etag)
      if (request.headers['if-none-match']?.split(/,\s*/).includes(etag)) return reply.code(304).send()
      return reply.type(type).send(body)
    })
  }
}
