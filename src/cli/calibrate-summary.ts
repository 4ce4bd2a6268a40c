/** What a calibration found, for people. */
import type {
  Calibration,
  CompressKvCalibration,
  RazorAttentionCalibration,
  UncompCalibration,
} from '../contract/calibration.ts'
import { Table } from './table.ts'

export function summary(calibration: Calibration): string {
  switch (calibration.policy) {
    case 'razorattention':
      return razorattention(calibration)
    case 'compresskv':
      return compresskv(calibration)
    case 'uncomp':
      return uncomp(calibration)
    default:
      return calibration satisfies never
  }
}

/** Heads in a summary; the file has all. */
const SHOWN = 10

interface ScoredHead {
  readonly layer: number
  readonly kvHead: number
  readonly induction: number
  readonly echo: number
}

const scoredHeads = new Table<ScoredHead>([
  { title: 'layer', width: 5, show: (h) => String(h.layer) },
  { title: 'KV head', width: 7, show: (h) => String(h.kvHead) },
  { title: 'induction', width: 9, show: (h) => h.induction.toFixed(4) },
  { title: 'echo', width: 7, show: (h) => h.echo.toFixed(4) },
])

function razorattention({ echo, induction }: RazorAttentionCalibration): string {
  const heads = induction.flatMap((list, layer) =>
    list.map((score, kvHead): ScoredHead => ({ layer, kvHead, induction: score, echo: echo[layer]![kvHead]! })),
  )
  const best = heads.toSorted((a, b) => b.induction - a.induction)
  const scores = best.map((h) => h.induction)
  const ratio = scores[0]! / scores[Math.floor(scores.length / 2)]!
  return (
    `${scoredHeads.head}${best
      .slice(0, SHOWN)
      .map((h) => scoredHeads.row(h))
      .join('')}${others(best.length)}\n` +
    `KV heads by induction: the highest is ${ratio.toFixed(0)} times the median. Heads that retrieve stand apart from the rest; where\n` +
    `they do not, no share of them is the right one.\n${histogram(scores)}`
  )
}

const others = (all: number) => (all > SHOWN ? `and ${all - SHOWN} others\n` : '')

/** Ten bins from 0 to the highest. */
export function histogram(scores: readonly number[]): string {
  const bins = 10
  const width = Math.max(...scores) / bins
  const counts = new Array<number>(bins).fill(0)
  for (const s of scores) counts[Math.min(bins - 1, Math.floor(s / width))]! += 1
  const most = Math.max(...counts)
  return counts
    .map((n, i) => `${(i * width).toFixed(3)}  ${'#'.repeat(Math.ceil((40 * n) / most))}${n > 0 ? ` ${n}` : ''}\n`)
    .join('')
}

interface RankedLayer {
  readonly layer: number
  readonly share: number
  readonly heads: readonly number[]
}

const rankedLayers = new Table<RankedLayer>([
  { title: 'layer', width: 5, show: (l) => String(l.layer) },
  { title: 'share of the error', width: 8, show: (l) => `${(100 * l.share).toFixed(1)} %` },
  { title: 'query heads, best first', width: 24, left: true, show: (l) => l.heads.slice(0, SHOWN).join(' ') },
])

function compresskv({ heads, layerShares }: CompressKvCalibration): string {
  const rows = heads.map((list, layer) => rankedLayers.row({ layer, share: layerShares[layer]!, heads: list }))
  return rankedLayers.head + rows.join('')
}

interface EntropyLayer {
  readonly layer: number
  readonly entropy: number
  readonly change: number | null
  readonly votes: readonly number[]
}

const entropyLayers = new Table<EntropyLayer>([
  { title: 'layer', width: 5, show: (l) => String(l.layer) },
  { title: 'entropy', width: 8, show: (l) => `${l.entropy.toFixed(3)}` },
  { title: 'change', width: 7, show: (l) => (l.change === null ? '' : l.change.toFixed(3)) },
  { title: 'votes of its KV heads', width: 24, left: true, show: (l) => l.votes.map((v) => v.toFixed(2)).join(' ') },
])

function uncomp({ layerEntropies, headVotes }: UncompCalibration): string {
  const rows = layerEntropies.map((entropy, layer) =>
    entropyLayers.row({
      layer,
      entropy,
      change: layer === 0 ? null : entropy - layerEntropies[layer - 1]!,
      votes: headVotes[layer]!,
    }),
  )
  return `${entropyLayers.head}${rows.join('')}Entropies in nats, summed over the query heads. Where one falls, a group of layers begins.\n`
}
