/** A small hub on 127.0.0.1: the endpoints that `pull` uses, and the ways in which they can fail. */
import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

export class FakeHub implements Disposable {
  readonly repo = 'owner/repo-GGUF'
  readonly files = new Map<string, Buffer>()
  /** Files that lie in git itself, not in LFS. */
  readonly inGit = new Set<string>()
  readonly requests: { path: string; range: string | undefined; authorization: string | undefined }[] = []
  /** Answers with this status to whoever does not bring the token. */
  gate: { token: string; status: number } | null = null
  /** Status for everything. */
  broken: number | null = null
  /** Connections break off after so many bytes, one number for each download. */
  breakAfter: number[] = []
  /** What is sent differs in one bit. */
  corrupt = false
  ignoreRanges = false
  /** Milliseconds between pieces of 64 KiB. */
  pause = 0
  readonly #hub: Server
  /** Large files lie on another origin, to which the hub redirects. */
  readonly #store: Server

  private constructor() {
    this.#hub = createServer((req, res) => this.#answer(req, res))
    this.#store = createServer((req, res) => void this.#send(req, res))
  }

  static async start(): Promise<FakeHub> {
    const hub = new FakeHub()
    for (const s of [hub.#hub, hub.#store]) await new Promise<void>((done) => s.listen(0, '127.0.0.1', done))
    return hub
  }

  get url(): string {
    return urlOf(this.#hub)
  }

  /** Downloads of file content so far. */
  get downloads() {
    return this.requests.filter((r) => r.path.startsWith('/store/'))
  }

  #answer(req: IncomingMessage, res: ServerResponse): void {
    const { pathname } = new URL(req.url!, this.url)
    const { authorization, range } = req.headers
    this.requests.push({ path: pathname, range, authorization })
    const refuse = (status: number) =>
      res.writeHead(status, { 'content-type': 'application/json' }).end('{"error":"no"}')
    if (this.broken) return void refuse(this.broken)
    if (this.gate && authorization !== `Bearer ${this.gate.token}`) return void refuse(this.gate.status)
    if (pathname === `/api/models/${this.repo}/tree/main`) {
      res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(this.#tree()))
      return
    }
    const path = decodeURIComponent(pathname.replace(`/${this.repo}/resolve/main/`, ''))
    if (!this.files.has(path)) return void refuse(404)
    res.writeHead(302, { location: `${urlOf(this.#store)}/store/${encodeURIComponent(path)}` }).end()
  }

  #tree() {
    return [...this.files].map(([path, bytes]) => {
      const oid = createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex')
      const sha256 = createHash('sha256').update(bytes).digest('hex')
      const lfs = { oid: sha256, size: bytes.length, pointerSize: 134 }
      return { type: 'file', path, size: bytes.length, oid, ...(this.inGit.has(path) ? {} : { lfs }) }
    })
  }

  async #send(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const { authorization, range } = req.headers
    this.requests.push({ path: req.url!, range, authorization })
    const all = Buffer.from(this.files.get(decodeURIComponent(req.url!.replace('/store/', '')))!)
    if (this.corrupt) all[all.length >> 1]! ^= 1
    const from = this.ignoreRanges ? 0 : Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0)
    const bytes = all.subarray(from)
    const head = { 'content-length': bytes.length, 'accept-ranges': 'bytes', etag: '"x"' }
    if (this.ignoreRanges) res.writeHead(200, head)
    else res.writeHead(206, { ...head, 'content-range': `bytes ${from}-${all.length - 1}/${all.length}` })
    const end = this.breakAfter.shift() ?? bytes.length
    for (let at = 0; at < end; at += 65536) {
      res.write(bytes.subarray(at, Math.min(at + 65536, end)))
      if (this.pause) await sleep(this.pause)
    }
    if (end < bytes.length) setTimeout(() => res.destroy(), 20)
    else res.end()
  }

  [Symbol.dispose](): void {
    for (const s of [this.#hub, this.#store]) {
      s.closeAllConnections()
      s.close()
    }
  }
}

function urlOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
