/** Dark, light, or as the system has it; and colours of the style sheet for what is drawn by script. */
import { effect, signal } from '@preact/signals'
import { readStored, store } from './storage.ts'

export const THEMES = ['system', 'light', 'dark'] as const
export type Theme = (typeof THEMES)[number]

const KEY = 'kvasir.theme'
const isTheme = (value: unknown): value is Theme => THEMES.includes(value as Theme)
const darkSystem = matchMedia('(prefers-color-scheme: dark)')

export const theme = signal<Theme>(readStored<Theme>(KEY, 'system', isTheme))
/** Grows whenever colours changed: whoever draws reads it. */
export const paletteVersion = signal(0)

export function keepTheme(): void {
  effect(() => {
    document.documentElement.dataset['theme'] = theme.value
    store(KEY, theme.value)
    paletteVersion.value = paletteVersion.peek() + 1
  })
  darkSystem.addEventListener('change', () => {
    paletteVersion.value++
  })
}

/** A custom property as a colour that canvases take: `ink('accent')` is `rgb(13, 122, 111)`. */
export function ink(name: string): string {
  const probe = document.createElement('i')
  probe.style.color = `var(--${name})`
  document.body.append(probe)
  const { color } = getComputedStyle(probe)
  probe.remove()
  return color
}
