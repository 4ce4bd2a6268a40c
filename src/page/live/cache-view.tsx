/** The cache: a square for each page, facts of the one that is pointed at, the tiers below, and all of it in words. */
import { useComputed, useSignal, useSignalEffect } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import type { ArenaMap } from '../../engine/api.ts'
import * as format from '../format.ts'
import { paletteVersion } from '../theme.ts'
import {
  countStates,
  type Grid,
  gridFor,
  OWNER_COLOURS,
  type PageState,
  paint,
  readPalette,
  STATE_NAMES,
} from './cache-picture.ts'
import { cache } from './feed.ts'

/** Pages pale by themselves: they are drawn again this often, in milliseconds. */
const FADE_MS = 2000

export function CacheView() {
  const map = cache.value?.cache
  return (
    <section class="panel" aria-labelledby="cache-title">
      <h2 id="cache-title">
        Cache <span class="note">{map ? `a square is a page of ${map.pageTokens} tokens` : 'nothing to see yet'}</span>
      </h2>
      {map?.arenas.map((arena, i) => (
        <ArenaPicture key={i} index={i} arena={arena} isOnly={map.arenas.length === 1} />
      ))}
      {map ? <Legend lends={map.arenas.length > 1} /> : null}
      {map?.arenas.length ? <Words arenas={map.arenas} /> : null}
    </section>
  )
}

function ArenaPicture({
  index,
  arena,
  isOnly,
}: {
  readonly index: number
  readonly arena: ArenaMap
  readonly isOnly: boolean
}) {
  const canvas = useRef<HTMLCanvasElement>(null)
  const width = useSignal(0)
  const selected = useSignal<number | null>(null)
  const clock = useSignal(0)
  const grid = useComputed(() => gridFor(cache.value?.cache.arenas[index]?.pages ?? 0, width.value || 1))
  const palette = useComputed(() => {
    paletteVersion.value
    return readPalette()
  })
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => (width.value = Math.floor(entry!.contentRect.width)))
    observer.observe(canvas.current!.parentElement!)
    const timer = setInterval(() => clock.value++, FADE_MS)
    return () => {
      observer.disconnect()
      clearInterval(timer)
    }
  }, [])
  useSignalEffect(() => {
    clock.value
    const seen = cache.value
    const now = seen?.cache.arenas[index]
    if (!canvas.current || !now || width.value === 0) return
    const sinceMs = performance.now() - seen.receivedMs
    paint(canvas.current, width.value, {
      ...{ arena: now, grid: grid.value, palette: palette.value, sinceMs, selected: selected.value },
    })
  })
  const counts = countStates(arena)
  const summary = describeCounts(counts, arena.pages)
  const page = selected.value
  return (
    <figure class="arena">
      {isOnly ? null : <figcaption>{`keys ${arena.keyType}, values ${arena.valueType}`}</figcaption>}
      <div class="squares">
        <canvas
          ref={canvas}
          role="img"
          tabIndex={0}
          aria-label={`Pages of the cache. ${summary}. Arrow keys go from page to page.`}
          {...{ 'data-free': counts['.'], 'data-private': counts.o, 'data-shared': counts.s, 'data-prefix': counts.p }}
          height={grid.value.height}
          style={{ width: '100%', height: `${grid.value.height}px` }}
          onMouseMove={(event) => (selected.value = pageAt(event, grid.value, arena.pages))}
          onMouseLeave={() => (selected.value = null)}
          onFocus={() => (selected.value ??= 0)}
          onBlur={() => (selected.value = null)}
          onKeyDown={(event) => {
            const next = moved(event.key, selected.value ?? 0, grid.value.columns, arena.pages)
            if (next === null) return
            event.preventDefault()
            selected.value = next
          }}
        />
      </div>
      <p class="facts" aria-live="polite">
        {page === null || page >= arena.pages ? summary : factsOf(arena, page)}
      </p>
    </figure>
  )
}

function pageAt(event: MouseEvent, { columns, pitch }: Grid, pages: number): number | null {
  const column = Math.floor(event.offsetX / pitch)
  const page = Math.floor(event.offsetY / pitch) * columns + column
  return column < columns && page >= 0 && page < pages ? page : null
}

function moved(key: string, page: number, columns: number, pages: number): number | null {
  const steps: Readonly<Record<string, number>> = {
    ...{ ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -page, End: pages - 1 - page },
  }
  const step = steps[key]
  return step === undefined ? null : Math.min(pages - 1, Math.max(0, page + step))
}

function factsOf(arena: ArenaMap, page: number): string {
  const state = arena.states[page] as PageState
  const owner = arena.owners[page]!
  const ageMs = arena.agesMs[page]! + performance.now() - (cache.value?.receivedMs ?? 0)
  return [
    `page ${page}: ${STATE_NAMES[state]}`,
    ...(owner ? [`request ${owner}`] : []),
    ...(state === '.' ? [] : [`last used ${format.seconds(ageMs)} ago`]),
    `${format.bytes(arena.pageBytes)}, keys ${arena.keyType}, values ${arena.valueType}`,
  ].join(' · ')
}

function describeCounts(counts: Readonly<Record<PageState, number>>, pages: number): string {
  const shown = (['o', 's', 'p', 'l', '.'] as const).filter((s) => s !== 'l' || counts.l > 0)
  const parts = shown.map((s) => `${format.count(counts[s])} ${STATE_NAMES[s]}`)
  return `${format.count(pages)} pages: ${parts.join(', ')}`
}

function Legend({ lends }: { readonly lends: boolean }) {
  return (
    <ul class="legend" aria-label="Legend">
      <li>
        <i class="key private" /> private
      </li>
      <li>
        <i class="key shared" /> shared
      </li>
      <li>
        <i class="key prefix" /> stored prefix
      </li>
      {lends ? (
        <li>
          <i class="key lent" /> lent to other formats
        </li>
      ) : null}
      <li>
        <i class="key free" /> free
      </li>
      <li class="note">colour: request · paler: longer unused</li>
    </ul>
  )
}

function Words({ arenas }: { readonly arenas: readonly ArenaMap[] }) {
  return (
    <details class="words">
      <summary>In words</summary>
      {arenas.map((arena, i) => (
        <table key={i}>
          <caption>{describeCounts(countStates(arena), arena.pages)}</caption>
          <thead>
            <tr>
              <th scope="col">Request</th>
              <th scope="col">Private pages</th>
              <th scope="col">Shared pages</th>
              <th scope="col">Bytes</th>
            </tr>
          </thead>
          <tbody>
            {ownersOf(arena).map(([owner, { o, s }]) => (
              <tr key={owner}>
                <th scope="row">
                  <i class={`swatch owner-${owner % OWNER_COLOURS}`} /> {owner}
                </th>
                <td>{o}</td>
                <td>{s}</td>
                <td>{format.bytes((o + s) * arena.pageBytes)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      ))}
    </details>
  )
}

function ownersOf({ owners, states }: ArenaMap): readonly (readonly [number, { o: number; s: number }])[] {
  const found = new Map<number, { o: number; s: number }>()
  owners.forEach((owner, page) => {
    const state = states[page]
    if (!owner || (state !== 'o' && state !== 's')) return
    const counts = found.get(owner) ?? { o: 0, s: 0 }
    counts[state]++
    found.set(owner, counts)
  })
  return [...found].sort(([a], [b]) => a - b)
}
