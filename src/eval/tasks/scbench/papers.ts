/** Short made-up papers: a title, and six facts among prose. A right summary has the facts, in the order of a paper. */
import { Fresh } from '../draw.ts'
import type { Setting, Turn } from '../example.ts'
import { fill, scatter } from '../fill.ts'
import { sentence } from '../prose.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

const SUBJECTS = words(
  'lichens glaciers earthworms alloys comets orchids estuaries pollen termites basalt enzymes auroras',
)
const EFFECTS = words('growth decay colour density hardness migration salinity brightness fertility erosion')
const CAUSES = words('drought pressure moonlight vibration acidity altitude frost shade magnetism humidity')
const METHODS = words('spectroscopy sonar microscopy chromatography interviews drones tomography thermometry')
const SITES = words('Iceland Peru Norway Kenya Mongolia Tasmania Chile Finland Morocco Nepal')
const RESULTS = words('doubled halved tripled vanished stabilised reversed')

export interface Paper {
  readonly title: string
  /** In canonical order: question, place, method, size, result, limit. */
  readonly facts: readonly string[]
}

/** Papers that a context of so many tokens holds: eight in SCBench, fewer where facts would leave no room for prose. */
export const papersFor = (length: number): number => Math.max(2, Math.min(8, Math.floor(length / 220)))

export function makePapers({ r, length }: Setting): Paper[] {
  const fresh = new Fresh()
  return Array.from({ length: papersFor(length) }, () => {
    const subject = fresh.of(() => r.pick(SUBJECTS))
    const [effect, cause] = [r.pick(EFFECTS), r.pick(CAUSES)]
    return {
      title: `On the ${effect} of ${subject} under ${cause}`,
      facts: [
        `The authors ask how ${cause} changes the ${effect} of ${subject}.`,
        `They worked in ${r.pick(SITES)} for ${r.whole(2, 9)} years.`,
        `Their method is ${r.pick(METHODS)}.`,
        `They studied ${r.whole(100, 999)} samples of ${subject}.`,
        `The ${effect} ${r.pick(RESULTS)} within ${r.whole(10, 99)} days.`,
        `The study of ${subject} did not control for ${r.pick(CAUSES.filter((c) => c !== cause))}.`,
      ],
    }
  })
}

/** The papers one after the other; the facts of each are shuffled into prose of its own, `extras` are put anywhere. */
export function papersContext(
  { r, length, count }: Setting,
  head: string,
  papers: readonly Paper[],
  extras: readonly string[] = [],
): string {
  const body = (paper: Paper, prose: readonly string[]) => `Title: ${paper.title}\n${prose.join(' ')}`
  const fixed = [...papers.map((p) => body(p, p.facts)), extras.join(' ')].join('\n\n')
  const filler = fill(
    { length, count },
    { render: (units) => `${head}${fixed} ${units.join(' ')}`, next: (room) => sentence(r, room) },
  )
  const share = (i: number, of: readonly string[]) =>
    of.slice(Math.floor((i * of.length) / papers.length), Math.floor(((i + 1) * of.length) / papers.length))
  const texts = papers.map((paper, i) => {
    const inserts = r.shuffle([...paper.facts, ...share(i, extras)])
    return body(paper, scatter(r, share(i, filler), inserts))
  })
  return head + texts.join('\n\n')
}

export function summaryTurn({ title, facts }: Paper, roomFor: Setting['roomFor']): Turn {
  const reference = facts.join(' ')
  return {
    question: `Please summarize the paper titled "${title}".`,
    answers: [reference],
    reference,
    metric: 'rouge-lsum',
    maxTokens: roomFor(reference),
  }
}
