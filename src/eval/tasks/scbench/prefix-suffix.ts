/**
 * Retr.Prefix-Suffix: a list of random strings; which one has this prefix and this suffix? Exactly one does; another has
 * the prefix only, a third the suffix only.
 */
import { Fresh } from '../draw.ts'
import { valueTurn } from '../example.ts'
import { fill } from '../fill.ts'
import { defineScbenchTask, SYMBOLS, TURNS } from './frame.ts'

/** Symbols of a prefix and of a suffix. */
const ENDS = 3

export const prefixSuffix = defineScbenchTask({
  name: 'scbench_prefix_suffix',
  capability: 'string retrieval',
  summary: 'the string with a given prefix and suffix in a list of random ones',
  write({ r, length, count, roomFor }) {
    const ends = new Fresh()
    const end = () => ends.of(() => r.symbols(SYMBOLS, ENDS))
    const middle = () => r.symbols(SYMBOLS, r.whole(4, 12))
    const asked = Array.from({ length: TURNS }, () => {
      const [prefix, suffix] = [end(), end()]
      return { prefix, suffix, word: prefix + middle() + suffix }
    })
    const near = asked.flatMap(({ prefix, suffix }) => [prefix + middle() + end(), end() + middle() + suffix])
    const fixed = [...asked.map((a) => a.word), ...near]
    const render = (words: readonly string[]) =>
      `Find the word with both the given prefix and the given suffix in the dict below.\n\n[${words.join(', ')}]`
    const other = () => end() + middle() + end()
    const units = fill({ length, count }, { render: (more) => render([...fixed, ...more]), next: other })
    const turns = asked.map(({ prefix, suffix, word }) =>
      valueTurn(
        `Prefix: ${prefix}; Suffix: ${suffix}. The word with both prefix and suffix from the dict is:`,
        word,
        roomFor,
      ),
    )
    return { context: render(r.shuffle([...fixed, ...units])), turns }
  },
})
