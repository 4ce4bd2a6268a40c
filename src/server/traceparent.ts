/** The caller's place in a trace: the W3C headers `traceparent` and `tracestate` (https://www.w3.org/TR/trace-context/). */
import type { IncomingHttpHeaders } from 'node:http'

export interface TraceParent {
  /** 32 hex digits. */
  readonly traceId: string
  /** 16 hex digits: the caller's span. */
  readonly spanId: string
  readonly sampled: boolean
  /** Other systems' data, to be handed on as it is. */
  readonly state: string | null
}

/** Version, trace, span, flags. Versions behind 00 may add to it; ff is none. */
const PARENT = /^(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/

/** Null when there is none, or one that is not valid: it is then ignored, as the standard asks. */
export function traceOf({ traceparent, tracestate }: IncomingHttpHeaders): TraceParent | null {
  if (typeof traceparent !== 'string') return null
  const [, version, traceId, spanId, flags, more] = PARENT.exec(traceparent) ?? []
  if (!traceId || !spanId || /^0+$/.test(traceId) || /^0+$/.test(spanId)) return null
  if (version === '00' && more !== undefined) return null
  const state = Array.isArray(tracestate) ? tracestate.join(',') : tracestate
  return { traceId, spanId, sampled: (Number.parseInt(flags!, 16) & 1) === 1, state: state ?? null }
}
