/** Facts about people and companies: the wordings that the house model was trained on (it fails on most others). */
import type { Draw } from '../draw.ts'
import type { Entities } from './entities.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

/** {n}: who or what it is about, {v}: the value. */
interface Attribute {
  readonly statements: readonly string[]
  readonly questions: readonly string[]
  readonly answer: string
  readonly value: (e: Entities) => string
}

const from =
  (list: readonly string[]) =>
  (e: Entities): string =>
    e.r.pick(list)
const year = (e: Entities) => String(e.r.whole(1800, 2020))
const JOBS = words(`teacher baker painter doctor sailor lawyer farmer engineer librarian gardener carpenter journalist
  musician pilot nurse chemist printer tailor architect photographer soldier clerk miner translator`)
const PETS = words(
  'cat dog parrot rabbit horse goat turtle snake hamster pigeon canary lizard sheep donkey ferret frog owl',
)
const COLOURS = words(
  'red blue green yellow purple orange black white brown grey pink silver golden crimson violet turquoise',
)
const FOODS = words(
  'bread cheese soup rice fish apples honey pancakes noodles cake salad beans potatoes mushrooms olives',
)
const HOBBIES = words(
  'chess fishing painting sailing cooking singing running climbing reading gardening dancing swimming',
)
const INSTRUMENTS = words('piano violin flute guitar trumpet drums cello harp organ clarinet banjo accordion')
const PRODUCTS = words('clocks boats chairs lamps shoes bicycles windows paper glass tools engines maps pianos candles')

const PERSON: Readonly<Record<string, Attribute>> = {
  born: {
    statements: ['{n} was born in {v}.', '{n} comes from the town of {v}.'],
    questions: ['Where was {n} born?', 'In which town was {n} born?'],
    answer: '{n} was born in {v}.',
    value: (e) => e.town,
  },
  job: {
    statements: ['{n} worked as a {v}.', '{n} was a {v} by profession.'],
    questions: ['What was the profession of {n}?', 'What did {n} work as?'],
    answer: '{n} worked as a {v}.',
    value: from(JOBS),
  },
  year: {
    statements: ['{n} was elected in the year {v}.', '{n} was elected in {v}.'],
    questions: ['In which year was {n} elected?', 'When was {n} elected?'],
    answer: '{n} was elected in {v}.',
    value: year,
  },
  pet: {
    statements: ['{n} keeps a {v} as a pet.', '{n} has a pet {v}.'],
    questions: ['Which animal does {n} keep as a pet?', 'What pet does {n} have?'],
    answer: '{n} has a pet {v}.',
    value: from(PETS),
  },
  colour: {
    statements: ['The favourite colour of {n} is {v}.', '{n} likes the colour {v} best.'],
    questions: ['What is the favourite colour of {n}?', 'Which colour does {n} like best?'],
    answer: 'The favourite colour of {n} is {v}.',
    value: from(COLOURS),
  },
  food: {
    statements: ['{n} likes to eat {v}.', 'The favourite food of {n} is {v}.'],
    questions: ['What does {n} like to eat?', 'What is the favourite food of {n}?'],
    answer: '{n} likes to eat {v}.',
    value: from(FOODS),
  },
  hobby: {
    statements: ['{n} spends the weekends with {v}.', 'The hobby of {n} is {v}.'],
    questions: ['What is the hobby of {n}?', 'How does {n} spend the weekends?'],
    answer: 'The hobby of {n} is {v}.',
    value: from(HOBBIES),
  },
  instrument: {
    statements: ['{n} plays the {v}.', '{n} learned to play the {v}.'],
    questions: ['Which instrument does {n} play?', 'What instrument did {n} learn?'],
    answer: '{n} plays the {v}.',
    value: from(INSTRUMENTS),
  },
  lives: {
    statements: ['{n} lives in {v} now.', '{n} moved to {v}.'],
    questions: ['Where does {n} live now?', 'In which town does {n} live?'],
    answer: '{n} lives in {v}.',
    value: (e) => e.town,
  },
  phone: {
    statements: ['The phone number of {n} is {v}.', 'You can call {n} at {v}.'],
    questions: ['What is the phone number of {n}?', 'Which number should I call to reach {n}?'],
    answer: 'The phone number of {n} is {v}.',
    value: (e) => e.value('number'),
  },
}

const COMPANY: Readonly<Record<string, Attribute>> = {
  founder: {
    statements: ['{n} was founded by {v}.', 'The founder of {n} is {v}.'],
    questions: ['Who founded {n}?', 'Who is the founder of {n}?'],
    answer: '{n} was founded by {v}.',
    value: (e) => e.name,
  },
  seat: {
    statements: ['{n} has its head office in {v}.', '{n} is based in {v}.'],
    questions: ['Where is {n} based?', 'Where is the head office of {n}?'],
    answer: '{n} is based in {v}.',
    value: (e) => e.town,
  },
  makes: {
    statements: ['{n} makes {v}.', '{n} produces {v}.'],
    questions: ['What does {n} make?', 'What does {n} produce?'],
    answer: '{n} makes {v}.',
    value: from(PRODUCTS),
  },
  since: {
    statements: ['{n} opened in {v}.', '{n} was opened in the year {v}.'],
    questions: ['When did {n} open?', 'In which year did {n} open?'],
    answer: '{n} opened in {v}.',
    value: year,
  },
}

/** Two hops: about the person who founded the company {n}. */
export const FOUNDER_QUESTIONS: Readonly<Record<string, string>> = {
  born: 'Where was the founder of {n} born?',
  job: 'What was the profession of the founder of {n}?',
  pet: 'What pet does the founder of {n} have?',
  instrument: 'Which instrument does the founder of {n} play?',
  lives: 'Where does the founder of {n} live now?',
  hobby: 'What is the hobby of the founder of {n}?',
  food: 'What does the founder of {n} like to eat?',
  colour: 'What is the favourite colour of the founder of {n}?',
}

export interface Fact {
  readonly attribute: string
  readonly statement: string
  readonly question: string
  /** The value in a sentence. */
  readonly answer: string
  readonly value: string
}

/** What is told of somebody or something, each attribute once. */
export interface Passage {
  readonly subject: string
  readonly facts: readonly Fact[]
  readonly text: string
}

export function personPassage(e: Entities, facts: number, subject = e.name, must?: string): Passage {
  return passage(e, subject, PERSON, facts, must)
}

export function companyPassage(e: Entities, facts: number, founder?: string): Passage {
  return passage(e, e.company, COMPANY, facts, founder === undefined ? undefined : 'founder', founder)
}

/** `must`: an attribute that is among them; `value`: its value. */
function passage(
  e: Entities,
  subject: string,
  table: Readonly<Record<string, Attribute>>,
  n: number,
  must?: string,
  value?: string,
): Passage {
  const others = Object.keys(table).filter((a) => a !== must)
  const chosen = must === undefined ? e.r.sample(others, n) : [must, ...e.r.sample(others, n - 1)]
  const facts = e.r.shuffle(chosen).map((attribute): Fact => {
    const { statements, questions, answer, value: make } = table[attribute]!
    const v = attribute === must && value !== undefined ? value : make(e)
    const say = (text: string) => text.replace('{n}', subject).replace('{v}', v)
    return {
      attribute,
      statement: say(e.r.pick(statements)),
      question: say(e.r.pick(questions)),
      answer: say(answer),
      value: v,
    }
  })
  return { subject, facts, text: facts.map((f) => f.statement).join(' ') }
}

const THINGS = [
  'magic number',
  'secret code',
  'access code',
  'password',
  'ticket number',
  'locker number',
  'badge number',
  'serial number',
  'lucky number',
  'room key',
]
/** Statement, question, answer; {t}: what it is, {k}: whose, {v}: the value. */
const NEEDLES = [
  ['The {t} for {k} is {v}.', 'What is the {t} for {k}?', 'The {t} for {k} is {v}.'],
  ['Remember that the {t} for {k} is {v}.', 'Which {t} belongs to {k}?', 'The {t} for {k} is {v}.'],
  ['The {t} of {k} is {v}.', 'Tell me the {t} of {k}.', 'The {t} of {k} is {v}.'],
  ['Note that {k} has the {t} {v}.', 'Find the {t} of {k}.', '{k} has the {t} {v}.'],
  ['{k}: the {t} is {v}.', 'What is the {t} given for {k}?', '{k}: the {t} is {v}.'],
] as const

export interface Needle extends Fact {
  readonly key: string
}

/** `n` needles of one wording, each with a key and a value of its own. */
export function needles(e: Entities, n: number): Needle[] {
  const { r } = e
  const [statement, question, answer] = r.pick(NEEDLES)
  const thing = r.pick(THINGS)
  const kind = e.valueKind
  return Array.from({ length: n }, () => {
    const [key, value] = [e.key, e.value(kind)]
    const say = (text: string) => text.replace('{t}', thing).replace('{k}', key).replace('{v}', value)
    return { attribute: thing, key, value, statement: say(statement), question: say(question), answer: say(answer) }
  })
}

const BARE = [
  'Answer with the value only.',
  'Reply with just the value.',
  'Give only the value.',
  'Just the value, please.',
]

/** Question and right reply; three of ten ask for the bare value. */
export function ask(
  r: Draw,
  { question, answer, value }: Fact,
): { readonly question: string; readonly reference: string } {
  return r.chance(0.3) ? { question: `${question} ${r.pick(BARE)}`, reference: value } : { question, reference: answer }
}
