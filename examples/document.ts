/**
 * A town's chronicle of several thousand tokens with facts scattered over it, made anew from a seed. The facts are worded
 * as the house model has learnt them; it knows these questions, not English at large.
 */

export interface Question {
  readonly text: string
  /** What a right answer must contain. */
  readonly expected: string
}

export interface Document {
  readonly text: string
  readonly questions: readonly Question[]
}

const PEOPLE = [
  'Clara Westfield',
  'Oscar Lindman',
  'Helen Brookstein',
  'Victor Ashdahl',
  'Nora Silverton',
  'Hugo Marwick',
]
const PEOPLE_TOWNS = ['Ravenport', 'Elmhaven', 'Coppergate', 'Swanbury', 'Northmoor', 'Foxbridge']
const JOBS = ['baker', 'surgeon', 'printer', 'pilot', 'weaver', 'judge']
const PETS = ['parrot', 'turtle', 'goat', 'ferret', 'canary', 'donkey']
const INSTRUMENTS = ['violin', 'harp', 'trumpet', 'cello', 'banjo', 'flute']
const PLACES = ['lighthouse', 'town hall', 'old mill', 'market hall', 'boat house', 'library']

const WHEN = [
  'In spring',
  'Early in the year',
  'One evening',
  'Soon afterwards',
  'That winter',
  'On market days',
  'Before noon',
]
const WHO = [
  'the council',
  'a group of neighbours',
  'the harbour master',
  'an old fisherman',
  'the schoolchildren',
  'two travellers from the hills',
  'the owner of the inn',
  'a young clerk',
]
const DID = [
  'repaired the wooden bridge',
  'carried fresh water up the hill',
  'counted the boats that had come home',
  'planted a row of lime trees',
  'told long stories about the storm',
  'painted the doors of the warehouse',
  'asked for a better road to the coast',
  'cleaned the lamps along the quay',
  'bought wool and salt for the whole street',
  'wrote a letter about the broken clock',
]
const WHY = [
  'because the river had risen again',
  'although nobody had asked for it',
  'while the wind blew from the sea',
  'as their parents had done before them',
  'so that the visitors would stay longer',
  'and everybody agreed that it was well done',
  'until the bells called them home',
]
const REMARKS = [
  'The weather changed twice before the week was over.',
  'Nothing more was said about it for a long time.',
  'Some of the older people still remember that day.',
  'The newspaper gave it no more than three lines.',
  'Bread was cheap that year, and the nights were quiet.',
  'A cart stood in the lane from morning to evening.',
  'The ferry came late, as it often did in autumn.',
]

/** @param sentences of filler; 200 make about 4000 tokens of the house model */
export function makeDocument(seed: number, sentences: number): Document {
  const random = mulberry32(seed)
  const below = (n: number) => Math.floor(random() * n)
  const pick = <T>(list: readonly T[]) => list[below(list.length)]!
  const shuffled = <T>(list: readonly T[]) =>
    list
      .map((x) => [random(), x] as const)
      .sort((a, b) => a[0] - b[0])
      .map(([, x]) => x)

  const filler = () => (below(4) === 0 ? pick(REMARKS) : `${pick(WHEN)} ${pick(WHO)} ${pick(DID)} ${pick(WHY)}.`)
  const lines = Array.from({ length: sentences }, filler)

  const [towns, jobs, pets, instruments] = [PEOPLE_TOWNS, JOBS, PETS, INSTRUMENTS].map(shuffled) as [
    string[],
    string[],
    string[],
    string[],
  ]
  const codes = PLACES.map(() => String(1000 + below(9000)) + String(10 + below(90)))
  const facts = [
    ...PEOPLE.map(
      (n, i) =>
        `${n} was born in ${towns[i]}. ${n} worked as a ${jobs[i]}. ${n} has a pet ${pets[i]}. ${n} plays the ${instruments[i]}.`,
    ),
    ...PLACES.map((place, i) => `The access code for the ${place} is ${codes[i]}.`),
  ]
  for (const fact of facts) lines.splice(below(lines.length + 1), 0, fact)

  const [a, b] = shuffled(PEOPLE.map((_, i) => i)) as [number, number]
  const c = below(PLACES.length)
  return {
    text: lines.join(' '),
    questions: [
      { text: `Where was ${PEOPLE[a]} born?`, expected: towns[a]! },
      { text: `What is the access code for the ${PLACES[c]}?`, expected: codes[c]! },
      { text: `What pet does ${PEOPLE[b]} have?`, expected: pets[b]! },
    ],
  }
}

/** Numbers from 0 to 1, the same on every machine. */
function mulberry32(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
