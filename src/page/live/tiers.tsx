/** Bytes of keys and values by where they lie, each as a strip of what it may hold. */

import * as format from '../format.ts'
import { model, models } from '../server.ts'
import { cache, status } from './feed.ts'

export function Tiers() {
  const kv = status.value?.status.kv
  const info = models.value.find(({ id }) => id === (model.value || models.value[0]?.id))?.info
  if (!kv || !info) return null
  const used = kv.usedBytes - kv.prefixBytes
  return (
    <div class="tiers">
      <Strip
        name={info.device}
        limit={info.kvMemory}
        parts={[
          ['requests', used],
          ['stored', kv.prefixBytes],
        ]}
      />
      {cache.value?.cache.tiers.map(({ medium, bytes, limitBytes }) => (
        <Strip key={medium} name={medium} limit={limitBytes} parts={[['stored', bytes]]} />
      ))}
    </div>
  )
}

interface StripProps {
  readonly name: string
  readonly limit: number
  readonly parts: readonly (readonly [name: string, bytes: number])[]
}

function Strip({ name, limit, parts }: StripProps) {
  const total = parts.reduce((sum, [, bytes]) => sum + bytes, 0)
  const text = `${format.bytes(total)} of ${format.bytes(limit)}`
  return (
    <div class="strip">
      <span>{name}</span>
      <div
        class="bar"
        role="img"
        aria-label={`${name}: ${parts.map(([n, b]) => `${n} ${format.bytes(b)}`).join(', ')}; limit ${format.bytes(limit)}`}
      >
        {parts.map(([part, bytes]) => (
          <i key={part} class={part} style={{ width: `${limit > 0 ? (100 * bytes) / limit : 0}%` }} />
        ))}
      </div>
      <span class="number">{text}</span>
    </div>
  )
}
