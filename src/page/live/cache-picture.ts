/** The cache as squares on a canvas, one for each page, row by row. */
import type { ArenaMap } from '../../engine/api.ts'
import { ink } from '../theme.ts'

export const STATES = ['.', 'o', 's', 'p', 'l'] as const
export type PageState = (typeof STATES)[number]

export const STATE_NAMES: Readonly<Record<PageState, string>> = {
  '.': 'free',
  o: 'private',
  s: 'shared',
  p: 'stored prefix',
  l: 'lent to other formats',
}

/** Colours for owners: the id of a request takes them in turn. */
export const OWNER_COLOURS = 8

/** Largest and smallest side of a square with the gap beside it, CSS pixels. */
const [LARGEST, SMALLEST] = [14, 4]
/** Height that the picture should keep to, where squares can be small enough. */
const WANTED_HEIGHT = 190
/** After this long, a page is as pale as it gets. */
const OLD_MS = 120_000
const PALEST = 0.35

export interface Grid {
  readonly columns: number
  /** Side of a square with its gap, CSS pixels. */
  readonly pitch: number
  readonly height: number
}

/** The largest squares with which so many pages fit a width and the wanted height. */
export function gridFor(pages: number, width: number): Grid {
  let pitch = LARGEST
  while (pitch > SMALLEST && Math.ceil(pages / Math.floor(width / pitch)) * pitch > WANTED_HEIGHT) pitch--
  const columns = Math.max(1, Math.floor(width / pitch))
  return { columns, pitch, height: Math.ceil(pages / columns) * pitch }
}

export interface Palette {
  readonly owners: readonly string[]
  readonly prefix: string
  readonly free: string
  readonly paper: string
  readonly focus: string
}

export function readPalette(): Palette {
  return {
    owners: Array.from({ length: OWNER_COLOURS }, (_, i) => ink(`owner-${i}`)),
    ...{ prefix: ink('prefix'), free: ink('free'), paper: ink('paper'), focus: ink('text') },
  }
}

interface Painting {
  readonly arena: ArenaMap
  readonly grid: Grid
  readonly palette: Palette
  /** Milliseconds since the map was made. */
  readonly sinceMs: number
  /** The page that facts are shown of. */
  readonly selected: number | null
}

export function paint(canvas: HTMLCanvasElement, width: number, painting: Painting): void {
  const { arena, grid, palette, sinceMs, selected } = painting
  const scale = devicePixelRatio
  canvas.width = Math.round(width * scale)
  canvas.height = Math.round(grid.height * scale)
  const pen = canvas.getContext('2d')!
  pen.scale(scale, scale)
  const side = grid.pitch - (grid.pitch > 6 ? 2 : 1)
  for (let page = 0; page < arena.pages; page++) {
    const x = (page % grid.columns) * grid.pitch
    const y = Math.floor(page / grid.columns) * grid.pitch
    const state = arena.states[page] as PageState
    pen.globalAlpha = state === '.' ? 1 : brightness(arena.agesMs[page]! + sinceMs)
    pen.fillStyle = colourOf(state, arena.owners[page]!, palette)
    pen.fillRect(x, y, side, side)
    pen.globalAlpha = 1
    mark(pen, state, palette, x, y, side)
    if (page === selected) {
      pen.strokeStyle = palette.focus
      pen.lineWidth = 1.5
      pen.strokeRect(x - 0.25, y - 0.25, side + 0.5, side + 0.5)
    }
  }
}

/** Fresh pages are full, old ones pale. */
function brightness(ageMs: number): number {
  return 1 - (1 - PALEST) * Math.min(1, Math.log1p(ageMs / 1000) / Math.log1p(OLD_MS / 1000))
}

function colourOf(state: PageState, owner: number, palette: Palette): string {
  if (state === '.') return palette.free
  return state === 'p' || state === 'l' ? palette.prefix : palette.owners[owner % OWNER_COLOURS]!
}

/** States differ by pattern too: shared pages have a hole, stored prefixes a cut corner, lent pages are a frame. */
function mark(
  pen: CanvasRenderingContext2D,
  state: PageState,
  { paper }: Palette,
  x: number,
  y: number,
  side: number,
): void {
  pen.fillStyle = paper
  if (state === 's') {
    const hole = Math.max(1, Math.round(side / 3))
    const at = (side - hole) / 2
    pen.fillRect(x + at, y + at, hole, hole)
  }
  if (state === 'l') {
    const rim = Math.max(1, Math.round(side / 6))
    pen.fillRect(x + rim, y + rim, side - 2 * rim, side - 2 * rim)
  }
  if (state === 'p') {
    pen.beginPath()
    pen.moveTo(x + side / 2, y)
    pen.lineTo(x + side, y)
    pen.lineTo(x + side, y + side / 2)
    pen.fill()
  }
}

export function countStates(arena: ArenaMap): Readonly<Record<PageState, number>> {
  const counts: Record<PageState, number> = { '.': 0, o: 0, s: 0, p: 0, l: 0 }
  for (const state of arena.states) counts[state as PageState]++
  return counts
}
