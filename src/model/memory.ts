/** How much memory this process may still take. */
import { freemem } from 'node:os'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { Device } from '../ggml/device.ts'

/** Bytes that can be taken before the machine, or this process's container, runs out. */
export function freeHostBytes(): number {
  const available = (process as { availableMemory?: () => number }).availableMemory
  return available ? available() : freemem()
}

export interface MemoryNeed {
  readonly what: string
  readonly bytes: number
}

/** @throws KvasirError OUT_OF_MEMORY with the figures, when the needs do not fit the device. */
export function checkFits(file: string, device: Device, needs: readonly MemoryNeed[]): void {
  const needed = needs.reduce((sum, n) => sum + n.bytes, 0)
  const free = device.kind === 'cpu' ? freeHostBytes() : device.memory().free
  if (needed <= free) return
  const parts = needs.map((n) => `${n.what} ${showBytes(n.bytes)}`).join(', ')
  throw new KvasirError(
    'OUT_OF_MEMORY',
    `${file} needs ${showBytes(needed)} (${parts}), and ${showBytes(free)} are free on ${device.name}. ` +
      'Choose a smaller quantisation, a shorter context, or a smaller cache type',
    { neededBytes: needed, freeBytes: free },
  )
}
