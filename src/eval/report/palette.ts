/** Colours: one per policy, the same in every picture; references in ink. */
import { splitSpec } from '../../policies/options.ts'
import { unique } from './lists.ts'

/** Light and dark steps of one hue each, told apart by people who see few colours as neighbours and as a set. */
const HUES = [
  ['#2a78d6', '#4a97ee'],
  ['#d95926', '#eb7a4a'],
  ['#1a9b6c', '#25b583'],
  ['#b98200', '#d6a021'],
  ['#6a55c9', '#9c8df0'],
  ['#cf3f6e', '#ea6f97'],
  ['#2b8fa3', '#4fb4c8'],
  ['#7a7a17', '#b4b34a'],
] as const

/** What others are measured by: told apart by dashes, not by colour. */
const REFERENCES: ReadonlyMap<string, string> = new Map([
  ['full', '6 4'],
  ['random', '1.5 3'],
  ['streaming-llm', '5 3'],
  ['window', '2 4 6 4'],
])
/** For the second, third, ... policy of a hue: a variant with other options, or simply one more than there are hues. */
const DASHES = ['', '7 2.5', '3 2', '9 2 2 2']

export interface Style {
  /** Class of everything that is drawn for the policy. */
  readonly name: string
  readonly isReference: boolean
  readonly colours: readonly [light: string, dark: string]
  /** SVG's stroke-dasharray; empty: a whole line. */
  readonly dash: string
}

export type Styles = ReadonlyMap<string, Style>

/** The same policies in the same order always look the same. */
export function stylesOf(policies: readonly string[]): Styles {
  const base = (policy: string) => splitSpec(policy).name
  const coloured = unique(policies.map(base)).filter((name) => !REFERENCES.has(name))
  const used = new Map<number, number>()
  return new Map(
    policies.map((policy, i): [string, Style] => {
      const name = `p${i}`
      const reference = REFERENCES.get(base(policy))
      if (reference !== undefined)
        return [policy, { name, isReference: true, colours: ['#63686e', '#9a9ea4'], dash: reference }]
      const hue = coloured.indexOf(base(policy)) % HUES.length
      const times = used.get(hue) ?? 0
      used.set(hue, times + 1)
      return [policy, { name, isReference: false, colours: HUES[hue]!, dash: DASHES[times % DASHES.length]! }]
    }),
  )
}

/** Style sheet of a picture, or of the page that holds pictures. */
export function paletteCss(styles: Styles): string {
  const colours = (which: 0 | 1) => [...styles.values()].map((s) => `.${s.name}{--c:${s.colours[which]}}`).join('')
  return `:root{--paper:#fbfaf8;--raised:#fff;--text:#1d2125;--muted:#63686e;--line:#e3e0da;--accent:#0b6f65}
${colours(0)}
@media (prefers-color-scheme:dark){
:root{--paper:#15171a;--raised:#1c1f23;--text:#e6e4df;--muted:#9a9ea4;--line:#2c3036;--accent:#4fc3b4}
${colours(1)}
}
.plot text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--muted)}
.plot .title{font-weight:600;font-size:13px;fill:var(--text)}
.plot .heading{font-weight:600;font-size:15px;fill:var(--text)}
.plot .grid{stroke:var(--line);stroke-width:1}
.plot .series path{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.plot .series .leader{stroke-width:1;opacity:.45}
.plot .reference path{stroke-width:1.5}
.plot .series circle{fill:var(--c);stroke:var(--raised);stroke-width:1.5}
.plot .series text{fill:var(--c);font-weight:500}
.plot .card{fill:var(--raised);stroke:var(--line)}
`
}

/** For texts and attributes of HTML and SVG. */
export const escaped = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]!)
