/**
 * Long runs under load, for a person to start before a release; not part of `npm test`.
 *
 *   npx tsx test/soak/soak.ts --minutes 10 --json     twice the load that fits: is memory bounded, and is nobody lost?
 *   npx tsx test/soak/soak.ts --kills 50 --json       the engine's process is killed over and over: is any token wrong?
 *
 * Both judge every answer against a table of right ones. Ends with 1 when anything was not as it should be.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Random } from '../../bench/random-model.ts'
import { decodeBlockFile } from '../../src/cache/tiers/disk.ts'
import { showBytes } from '../../src/contract/errors.ts'
import type { EngineStatus } from '../../src/engine/api.ts'
import { EngineClient } from '../../src/engine/process/client.ts'
import { ask, type Known, knownAnswers, plan } from './requests.ts'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string' },
    kills: { type: 'string' },
    seed: { type: 'string', default: '1' },
    json: { type: 'boolean', default: false },
  },
})
if (process.platform !== 'linux') throw new Error('the soak reads memory and processes from /proc: it needs Linux')

const MODULE = new URL('./checked-engine.ts', import.meta.url).href
const MIB = 2 ** 20
/** 128 pages of the house model: two of the longest requests, or some twenty of the usual ones. */
const KV_MEMORY = 12 * MIB
const OPTIONS = { threads: 1, contextLength: 2048, kvMemory: KV_MEMORY, maxWaiting: 24 }
/** What the engine's process may take on top of its memory after the warm-up and its KV memory: V8's heap before it collects. */
const SLACK = 64 * MIB
/** Found in the environment of every process that this one starts. */
const MARK = `KVASIR_SOAK=${process.pid}-${Date.now()}`
process.env['KVASIR_SOAK'] = MARK.split('=')[1]

const seed = Number(values.seed)
const say = (line: string) => {
  if (!values.json) console.log(line)
}

class Tally {
  readonly counts: Record<string, number> = {}
  readonly wrong: string[] = []
  asked = 0

  add(outcome: string): void {
    const kind = outcome.startsWith('wrong: ') ? 'wrong' : outcome
    this.counts[kind] = (this.counts[kind] ?? 0) + 1
    if (kind === 'wrong' && this.wrong.length < 20) this.wrong.push(outcome)
  }

  get ended(): number {
    return Object.values(this.counts).reduce((sum, n) => sum + n, 0)
  }
}

/** Of one open request after another, each a promise that never rejects. */
function start(engine: EngineClient, tally: Tally, r: Random, known: readonly Known[], withCallers: boolean) {
  tally.asked++
  return ask(engine, plan(r, known, withCallers)).then(
    (outcome) => tally.add(outcome),
    (error: unknown) => tally.add(`wrong: ${error}`),
  )
}

// twice the load ------------------------------------------------------------------------------------------------------

async function overload(minutes: number, known: readonly Known[]) {
  const engine = await EngineClient.loadWith(MODULE, 'house', OPTIONS)
  const r = new Random(seed)
  const problems: string[] = []

  // What fits: a few callers, each with its next request when the last has ended.
  const warm = new Tally()
  const warmMs = Math.min(30_000, minutes * 15_000)
  const until = performance.now() + warmMs
  const caller = async () => {
    while (performance.now() < until) await start(engine, warm, r, known, true)
  }
  await Promise.all(Array.from({ length: 12 }, caller))
  const perSecond = (1000 * warm.ended) / warmMs
  const warmBytes = residentBytes(engine.pid!)
  say(`${perSecond.toFixed(1)} requests/s fit; resident after the warm-up ${showBytes(warmBytes)}`)

  const tally = new Tally()
  const open = new Set<Promise<void>>()
  const begin = performance.now()
  const ms = minutes * 60_000
  let [mostBytes, mostOpen, mostUsed, next, nextSample] = [0, 0, 0, begin, begin]
  const perMinute: number[] = []
  while (performance.now() - begin < ms) {
    const now = performance.now()
    // Arrivals do not wait for answers, nor for this loop's timers.
    for (; next <= now; next += (-Math.log(1 - r.uniform()) * 1000) / (2 * perSecond)) {
      const one: Promise<void> = start(engine, tally, r, known, true).finally(() => open.delete(one))
      open.add(one)
    }
    mostOpen = Math.max(mostOpen, open.size)
    if (now >= nextSample) {
      nextSample = now + 1000
      const bytes = residentBytes(engine.pid!)
      mostBytes = Math.max(mostBytes, bytes)
      const minute = Math.floor((now - begin) / 60_000)
      perMinute[minute] = Math.max(perMinute[minute] ?? 0, bytes)
      const { kv, waiting } = await engine.status()
      mostUsed = Math.max(mostUsed, kv.usedBytes)
      if (kv.usedBytes > KV_MEMORY || kv.allocatedBytes > KV_MEMORY) problems.push(`KV memory of ${kv.usedBytes} bytes`)
      if (waiting > OPTIONS.maxWaiting + 16) problems.push(`${waiting} requests wait`)
    }
    await sleep(5)
  }
  const drained = await Promise.race([Promise.all(open).then(() => true), sleep(60_000, false, { ref: false })])
  if (!drained) problems.push(`${open.size} requests have not ended a minute after the last came`)
  const status = await idle(engine, problems)
  const limit = warmBytes + KV_MEMORY + SLACK
  if (mostBytes > limit) problems.push(`resident memory of ${showBytes(mostBytes)}, above ${showBytes(limit)}`)
  if (tally.ended !== tally.asked) problems.push(`${tally.asked} requests were asked, ${tally.ended} ended`)
  if (!tally.counts['QUEUE_FULL']) problems.push('no request was refused: this was no overload')
  if (status.totals.restarts > 0) problems.push(`the engine's process was restarted ${status.totals.restarts} times`)
  await engine.dispose()
  orphans(problems)
  return {
    ...{ minutes, requests: tally.asked, requests_per_s_fitting: round(perSecond) },
    requests_per_s_arriving: round((1000 * tally.asked) / ms),
    ...{ outcomes: tally.counts, wrong: tally.wrong, most_open: mostOpen },
    rss_mib: { warm: mib(warmBytes), most: mib(mostBytes), limit: mib(limit), most_by_minute: perMinute.map(mib) },
    kv_mib: { limit: mib(KV_MEMORY), most_used: mib(mostUsed) },
    ...{ totals: status.totals, problems },
  }
}

// kills ---------------------------------------------------------------------------------------------------------------

async function killed(kills: number, known: readonly Known[]) {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-soak-'))
  const problems: string[] = []
  const r = new Random(seed + 1)
  // Small enough that blocks are evicted from the disk too.
  const options = { ...OPTIONS, diskCache: folder, diskCacheBytes: 128 * MIB }
  const supervision = { firstDelayMs: 20, maxDelayMs: 500 }
  const engine = await EngineClient.loadWith(MODULE, 'house', options, supervision)
  const tally = new Tally()
  let done = 0
  const caller = async () => {
    while (done < kills) await start(engine, tally, r, known, false)
  }
  const callers = Array.from({ length: 8 }, caller)
  const pids = new Set<number>()
  let [whileStarting, strayAtMost] = [0, 0]
  while (done < kills) {
    // At any moment of a life; each fifth time its start included.
    const isEarly = r.uniform() < 0.2
    if (!isEarly) await engine.status()
    await sleep((isEarly ? 1000 : 3000) * r.uniform())
    const { pid } = engine
    if (pid === null || pids.has(pid)) continue
    pids.add(pid)
    const before = tally.counts['ENGINE_CRASHED'] ?? 0
    process.kill(pid, 'SIGKILL')
    done++
    await until(() => engine.pid !== pid)
    if ((tally.counts['ENGINE_CRASHED'] ?? 0) === before) whileStarting++
    strayAtMost = Math.max(strayAtMost, files(folder).filter(isTemporary).length)
    say(`kill ${done}: ${JSON.stringify(tally.counts)}`)
  }
  const ended = await Promise.race([Promise.all(callers).then(() => true), sleep(120_000, false, { ref: false })])
  if (!ended || tally.ended !== tally.asked) problems.push(`${tally.asked} requests were asked, ${tally.ended} ended`)
  // Answers made from what the killed ones left on the disk.
  const last = new Tally()
  for (const k of known) {
    last.asked++
    const p = { ...plan(r, [k], false), maxTokens: 48, samples: 1, tenant: 'tenant 1' }
    last.add(await ask(engine, p))
  }
  const { totals } = await idle(engine, problems)
  await engine.dispose()
  const stray = files(folder).filter(isTemporary)
  if (stray.length > 0) problems.push(`temporary files are left: ${stray}`)
  const blocks = files(folder).filter((f) => f.endsWith('.kvb'))
  const damaged = blocks.filter((f) => {
    const [root, name] = f.split('/').slice(-2) as [string, string]
    return decodeBlockFile(readFileSync(f), root, name.replace('.kvb', '')) === null
  })
  if (damaged.length > 0) problems.push(`${damaged.length} damaged block files`)
  if (last.counts['complete'] !== known.length)
    problems.push(`in the end: ${JSON.stringify(last.counts)} ${last.wrong}`)
  if (!tally.counts['ENGINE_CRASHED']) problems.push('no request met a kill')
  orphans(problems)
  rmSync(folder, { recursive: true })
  return {
    ...{ kills: done, restarts: totals.restarts, kills_without_requests: whileStarting, requests: tally.asked },
    ...{
      outcomes: tally.counts,
      wrong: tally.wrong,
      in_the_end: last.counts,
      cached_tokens_in_the_end: totals.cachedTokens,
    },
    ...{ block_files: blocks.length, damaged_files: damaged.length, temporary_files_at_most: strayAtMost },
    ...{ temporary_files_left: stray.length, problems },
  }
}

function files(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((f) => f.isFile())
    .map((f) => join(f.parentPath, f.name))
}

function isTemporary(path: string): boolean {
  return !path.endsWith('.kvb')
}

// what both need ------------------------------------------------------------------------------------------------------

/** Its status when nothing is left to do; the engine has then checked its store. */
async function idle(engine: EngineClient, problems: string[]): Promise<EngineStatus> {
  let status = await engine.status()
  await until(async () => {
    status = await engine.status()
    return status.running === 0 && status.waiting === 0
  })
  if (status.running + status.waiting > 0) problems.push(`not idle: ${status.running} run, ${status.waiting} wait`)
  const { usedBytes, prefixBytes } = status.kv
  if (usedBytes !== prefixBytes)
    problems.push(`idle, and ${usedBytes} bytes are used, ${prefixBytes} of them by prefixes`)
  return status
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 30_000
  while (!(await condition()) && performance.now() < end) await sleep(5)
}

function residentBytes(pid: number): number {
  const kib = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return 1024 * Number(kib?.[1] ?? 0)
}

/** Engine processes that this run started and that still live. */
function orphans(problems: string[]): void {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
    try {
      const isOurs = readFileSync(`/proc/${pid}/environ`, 'latin1').includes(MARK)
      const command = readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ')
      if (isOurs && command.includes('process/worker')) problems.push(`process ${pid} is left: ${command}`)
    } catch {} // it ended meanwhile, or is somebody else's
}

const mib = (bytes: number) => round(bytes / MIB)
const round = (x: number) => Math.round(10 * x) / 10

const teacher = await EngineClient.load('house', { threads: 1, contextLength: 2048 })
const known = await knownAnswers(teacher, 48, seed)
await teacher.dispose()
say(`${known.reduce((sum, k) => sum + k.right.length, 0)} sure tokens of ${known.length} prompts`)
const kills = values.kills === undefined ? 0 : Number(values.kills)
const minutes = values.minutes === undefined ? (kills ? 0 : 10) : Number(values.minutes)
const summary = {
  ...(minutes > 0 ? { overload: await overload(minutes, known) } : {}),
  ...(kills > 0 ? { kills: await killed(kills, known) } : {}),
}
console.log(JSON.stringify(summary, null, 2))
const wrong = Object.values(summary).flatMap((s) => [...s.wrong, ...s.problems])
process.exitCode = wrong.length > 0 ? 1 : 0
