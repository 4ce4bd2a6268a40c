/**
 * In which order waiting requests are served. Schedulers take it as given; this is the one place that knows tenants.
 *
 *   1  higher priority
 *   2  answers that had begun and were preempted, oldest arrival first: their readers are waiting (Sarathi-Serve puts victims
 *      at the front as well)
 *   3  urgent requests, nearest deadline first. Urgent: half of the time from arrival to deadline is over, the deadline is not.
 *      Without a cost model nobody knows who would miss one; the half scales with what was asked. Past deadlines count no more:
 *      serving a lost one would cost the next its own
 *   4  the tenant that got least so far, its oldest request first
 *
 * 4 is the virtual token counter (Sheng et al. 2024, "Fairness in Serving Large Language Models", arXiv 2401.00588): a tenant
 * has what it was served, a prompt token counting 1, a token of an answer 2. The list is made as VTC's loop makes it: the
 * least served tenant gives a request and pays for its prompt at once, so that its whole queue does not pass.
 * A tenant that has nothing waiting comes back at the lowest counter of those that do (`join`): asking little saves up no credit.
 * Differs: when nobody waits, VTC lifts to the counter of who left the queue last, here to the highest of those that run; when
 * nothing runs either, all counters are forgotten. Without a queue nobody is owed anything, and tenants that are gone take no
 * memory.
 * Deadlines and priorities go before fairness: who may set them is for the server to say.
 */
import type { RequestView } from '../contract/schedule.ts'

/** What each tenant was served, in weighted tokens. */
export type ServedTokens = ReadonlyMap<string, number>

const INPUT_WEIGHT = 1
const OUTPUT_WEIGHT = 2

/** Waiting requests in the order in which they are to be served. */
export function order(waiting: readonly RequestView[], served: ServedTokens, nowMs: number): RequestView[] {
  const counters = new Map(served)
  const pay = (r: RequestView) => counters.set(r.tenant, (counters.get(r.tenant) ?? 0) + promptCost(r))
  const ordered: RequestView[] = []
  for (const group of groupBy(waiting, (r) => r.priority).sort((a, b) => b[0]!.priority - a[0]!.priority)) {
    const begun = group.filter((r) => r.generated > 0).sort(byArrival)
    const urgent = group
      .filter((r) => isUrgent(r, nowMs))
      .sort((a, b) => a.deadlineMs! - b.deadlineMs! || byArrival(a, b))
    const first = [...begun, ...urgent]
    first.forEach(pay)
    ordered.push(...first)
    const others = group.filter((r) => !first.includes(r))
    const queues = groupBy(others.sort(byArrival), (r) => r.tenant)
    const counter = (queue: RequestView[]) => counters.get(queue[0]!.tenant) ?? 0
    for (let n = others.length; n > 0; n--) {
      const next = queues
        .filter((q) => q.length > 0)
        .reduce((a, b) => ((counter(b) - counter(a) || byArrival(b[0]!, a[0]!)) < 0 ? b : a))
      const r = next.shift()!
      pay(r)
      ordered.push(r)
    }
  }
  return ordered
}

/**
 * To be called when a request arrives, before it is among those that wait.
 * @param waiting tenants of the requests that wait
 * @param running tenants of the requests that run
 */
export function join(
  served: ServedTokens,
  tenant: string,
  waiting: Iterable<string>,
  running: Iterable<string>,
): ServedTokens {
  const queued = new Set(waiting)
  if (queued.has(tenant)) return served
  const active = new Set(running)
  const counter = (t: string) => served.get(t) ?? 0
  if (queued.size + active.size === 0) return new Map([[tenant, 0]])
  const floor = queued.size > 0 ? Math.min(...[...queued].map(counter)) : Math.max(...[...active].map(counter))
  // Who is away at or below the floor would be lifted to it anyway.
  const kept = new Map([...served].filter(([t, n]) => queued.has(t) || active.has(t) || n > floor))
  return kept.set(tenant, Math.max(floor, counter(tenant)))
}

/** Adds what a tenant got: its prompt when it is admitted, as VTC does, its answer token by token. */
export function serve(
  served: ServedTokens,
  tenant: string,
  tokens: { readonly input?: number; readonly output?: number },
): ServedTokens {
  const more = INPUT_WEIGHT * (tokens.input ?? 0) + OUTPUT_WEIGHT * (tokens.output ?? 0)
  return new Map(served).set(tenant, (served.get(tenant) ?? 0) + more)
}

/** What admission will cost its tenant. A preempted answer is recomputed at the house's expense. */
export function promptCost(r: RequestView): number {
  return r.generated > 0 ? 0 : INPUT_WEIGHT * (r.rows - r.computed)
}

function isUrgent(r: RequestView, nowMs: number): boolean {
  if (r.deadlineMs === null || r.generated > 0 || nowMs > r.deadlineMs) return false
  return nowMs - r.arrivalMs >= r.deadlineMs - nowMs
}

function byArrival(a: RequestView, b: RequestView): number {
  return a.arrivalMs - b.arrivalMs || a.id - b.id
}

function groupBy<K>(requests: readonly RequestView[], key: (r: RequestView) => K): RequestView[][] {
  const groups = new Map<K, RequestView[]>()
  for (const r of requests) {
    const group = groups.get(key(r))
    if (group) group.push(r)
    else groups.set(key(r), [r])
  }
  return [...groups.values()]
}
