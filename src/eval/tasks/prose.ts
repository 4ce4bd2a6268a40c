/**
 * Made-up prose: what stands between the things that are asked for. It is put together from some hundred words and a few
 * shapes of sentences, so that hardly a sentence comes twice: filler that repeats would flatter every method that
 * compresses. It holds no digits, no capitals inside sentences and none of the words that tasks ask for.
 */
import { Draw } from './draw.ts'
import type { CountTokens } from './example.ts'
import { fill } from './fill.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

const PEOPLE =
  words(`captain neighbour uncle widow traveller stranger shepherd merchant housekeeper visitor cousin landlord
  student porter grandmother messenger fisherman innkeeper magistrate apprentice`)
const THINGS =
  words(`bridge road cellar chimney curtain ladder fence cupboard letter drawer staircase barrel wagon mirror
  blanket kettle parcel newspaper umbrella pillow candle basket chest carriage bench wheel portrait ledger rope gate shutter`)
const PLACES = words(`market churchyard courtyard valley riverbank attic village forest quarry stable corridor pasture
  crossing parlour wharf square vineyard meadowland hillside outskirts`)
const QUALITIES =
  words(`old narrow quiet heavy broken distant careful worn gentle crooked damp pale ordinary noisy empty
  patient muddy faded sturdy modest restless dusty hollow cheerful`)
const DID = words(`noticed repaired forgot described carried admired mentioned borrowed avoided sketched sold measured
  remembered praised examined moved covered abandoned inspected followed`)
const WAS = words(`creaked leaned rested vanished trembled waited remained rattled settled appeared lingered stood`)
const WHEN = [
  'before the storm',
  'in those days',
  'late in the evening',
  'without a word',
  'after the harvest',
  'as everyone expected',
  'for no clear reason',
  'during the long winter',
  'when the rain had stopped',
  'against all advice',
  'year after year',
  'until the lamps were lit',
  'more often than not',
  'with great patience',
]
const WHY = [
  'because nobody else would',
  'although the cost was high',
  'so that the children could sleep',
  'while the others argued',
  'since the door would not close',
  'as if it had always been so',
  'even though the wind was cold',
  'and nothing more was said about it',
]

/** One sentence; where `room` tokens are few, a short one. */
export function sentence(r: Draw, room = Number.POSITIVE_INFINITY): string {
  const someone = () => `${r.chance(0.4) ? `${r.pick(QUALITIES)} ` : ''}${r.pick(PEOPLE)}`
  const something = () => `${r.chance(0.6) ? `${r.pick(QUALITIES)} ` : ''}${r.pick(THINGS)}`
  const short = [
    () => `the ${r.pick(THINGS)} ${r.pick(WAS)}`,
    () => `the ${r.pick(PEOPLE)} ${r.pick(WAS)}`,
    () => `${r.pick(PEOPLE)} and ${r.pick(PEOPLE)} ${r.pick(WAS)}`,
  ]
  const long = [
    () => `the ${someone()} ${r.pick(DID)} the ${something()} ${r.pick(WHEN)}`,
    () => `the ${something()} in the ${r.pick(PLACES)} ${r.pick(WAS)} ${r.pick(WHEN)}`,
    () => `a ${something()} ${r.pick(WAS)} near the ${r.pick(PLACES)}, ${r.pick(WHY)}`,
    () => `${r.pick(WHEN)}, the ${someone()} and the ${someone()} ${r.pick(DID)} a ${something()}`,
    () => `the ${someone()} of the ${r.pick(PLACES)} ${r.pick(DID)} every ${something()} ${r.pick(WHY)}`,
    () => `there was a ${something()} behind the ${r.pick(PLACES)}, and the ${someone()} ${r.pick(DID)} it`,
  ]
  const text = r.pick(room < 24 ? short : long)()
  return `${text[0]!.toUpperCase()}${text.slice(1)}.`
}

/** A text of about `length` tokens with nothing hidden in it: what divergence from the full cache is measured on. */
export function proseText(seed: number, length: number, count: CountTokens): string {
  const r = new Draw(`prose-${length}-${seed}`)
  const render = (units: readonly string[]) => units.join(' ')
  return render(fill({ length, count }, { render, next: (room) => sentence(r, room) }))
}
