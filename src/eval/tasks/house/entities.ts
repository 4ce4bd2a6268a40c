/**
 * Made-up people, towns, companies, keys and values for the house model's tasks. As in its training script
 * (models/house-5m/training/tasks.py) strings are put into classes by a hash, and only those are drawn that training
 * never used.
 */
import { type Draw, Fresh } from '../draw.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

const FIRST =
  words(`Anna Boris Clara Daniel Elena Felix Greta Henry Ingrid Jonas Karin Louis Maria Nora Oscar Paula Quentin
  Rosa Simon Tessa Ursula Victor Wanda Xavier Yvonne Zoe Adam Bella Carl Dora Edwin Flora George Hilda Ivan Julia Kevin
  Laura Martin Nina Otto Petra Robert Sonia Thomas Vera Walter Amelia Bruno Celia Derek Edith Frank Gloria Hugo Irene`)
const FAMILY =
  words(`Hart Lind Berg Stone Wood Ash Black Gold Silver Winter Summer Holm Sand Rosen West North East South
  Green White Fair Long Short Strong Moor Lake Hill Brook Field Marsh Bren Cald Fen Hal Jor Kel Lor Mun Pel Quin Rad Tor`)
const FAMILY_END = words(
  'man son berg well ford ley ton stein ov ski quist dahl strom wick worth by land field more ell',
)
const TOWN = words(`Ash Oak Elm Birch Stone River Lake Hill North South East West Green Red Black White Silver Gold Iron
  Copper Fair High Low Long Old New King Queen Bishop Wolf Fox Bear Eagle Raven Swan Hart Mill Bridge`)
const TOWN_END =
  words(`ford ton vale field wick mouth bury ham stead port haven wood dale gate mere moor ridge burg crest
  fall well shire bridge brook combe`)
const COMPANY = words('Works Company Brothers Press Motors Mills Trading Foods Bank Group Labs Design')
/** Keys of needles and tables. None stands in the prose. */
const KEYS = words(`anchor camera danger engine figure garden handle island jacket kitchen lantern machine number office
  planet question record signal teacher uniform village window absolute balance capital decision element factor general
  history instrument journal knowledge library material network object pattern quality reason science temple universe
  valley weather airport button circle dinner example feather guitar harbour insect junior kingdom lemon mountain needle
  orange pencil rocket saddle ticket vessel winner yellow`)

/** Of 20 classes by CRC-32, 1 and 2 were kept out of training, for evaluation. */
const unseen = (s: string) => [1, 2].includes(crc32(s) % 20)

function crc32(text: string): number {
  let crc = 0xffffffff
  for (const byte of Buffer.from(text)) {
    crc ^= byte
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
  }
  return (crc ^ 0xffffffff) >>> 0
}

export const VALUE_KINDS = ['number', 'word', 'uuid'] as const
export type ValueKind = (typeof VALUE_KINDS)[number]

/** One example's entities. Who and what is asked about comes once; towns, which are values, can come again. */
export class Entities {
  readonly r: Draw
  readonly #fresh = new Fresh()

  constructor(r: Draw) {
    this.r = r
  }

  get name(): string {
    const { r } = this
    return this.#new(() => `${r.pick(FIRST)} ${r.pick(FAMILY)}${r.pick(FAMILY_END)}`)
  }

  get town(): string {
    const { r } = this
    return draw(() => r.pick(TOWN) + r.pick(TOWN_END))
  }

  get company(): string {
    const { r } = this
    return this.#new(() => `${r.pick(FAMILY)}${r.pick(FAMILY_END)} ${r.pick(COMPANY)}`)
  }

  /** What a needle's value is filed under. */
  get key(): string {
    const { r } = this
    const pair = () => r.sample(KEYS, 2).join(r.chance(0.12) ? '-' : ' ')
    return r.chance(0.2) ? this.name : this.#fresh.of(pair)
  }

  get word(): string {
    return this.#fresh.of(() => this.r.pick(KEYS))
  }

  /** Two words, joined: there are enough of these for the longest table. */
  get words(): string {
    return this.#fresh.of(() => this.r.sample(KEYS, 2).join('-'))
  }

  value(kind: ValueKind): string {
    const { r } = this
    const hex = (n: number) => r.symbols('0123456789abcdef', n)
    const shapes = [[8, 4], [4, 4, 4], [8], [6, 4], [8, 4, 4]] as const
    const make = {
      number: () => r.digits(r.whole(4, 7)),
      word: () => r.sample(KEYS, 2).join('-'),
      uuid: () => r.pick(shapes).map(hex).join('-'),
    }
    return this.#fresh.of(make[kind])
  }

  /** As often as in training: 5, 3 and 2 of ten. */
  get valueKind(): ValueKind {
    return this.r.pick(['number', 'number', 'number', 'number', 'number', 'word', 'word', 'word', 'uuid', 'uuid'])
  }

  hex(n: number): string {
    return this.#fresh.of(() => this.r.symbols('0123456789abcdef', n))
  }

  #new(make: () => string): string {
    return this.#fresh.of(() => draw(make))
  }
}

/** The first that training did not see. */
function draw(make: () => string): string {
  for (;;) {
    const s = make()
    if (unseen(s)) return s
  }
}
