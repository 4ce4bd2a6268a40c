import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { llama } from '../libllama/library.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { HOUSE_MODEL } from '../tokenizer/vocabularies.fixture.ts'
import { checkGrammar, literal, namedTokens } from './gbnf.ts'

const GOOD = [
  'root ::= "a"',
  'root ::= "a"{2,3} "b"* ("c" | "d")+ .? # a comment\n',
  'root ::= x-1\r\nx-1 ::= "a" |\n "b"\n\n# end',
  'root ::= [^\\x00-\\x1f"\\\\] [a-] [\\]\\[] "\\u00e9\\U0001F600é"',
  'root ::= "" | "a" |',
  'root ::= (\n  "a"\n  | "b" # inside\n)\nother ::= root',
  'root::=<[5]> !<[7]> "a"',
  'root ::= "(" root ")" | "x"',
  'root ::= [ \\t]{0,20}',
]

const BAD: [string, RegExp][] = [
  ['', /no rule called root/],
  ['x ::= "a"', /no rule called root/],
  ['root ::= "a', /no end/],
  ['root ::= [a', /no end/],
  ['root ::= ("a"', /no end/],
  ['root ::= []', /empty class/],
  ['root ::= [z-a]', /backwards/],
  ['root ::= "\\q"', /line 1, column 11: unknown escape/],
  ['root ::= "a"\nb_c ::= "x"', /line 2, column 2: ::= was expected/],
  ['root ::= "a" )', /end of the line/],
  ['root ::= nope', /no rule called nope/],
  ['root ::= "a"\nroot ::= "b"', /twice/],
  ['root ::= root "a"', /left recursion/],
  ['root ::= a root "x"\na ::= b\nb ::= "" | "y"', /left recursion/],
  ['root ::= a\na ::= b\nb ::= a | "x"', /left recursion/],
  ['root ::= ("a"?)*', /may be empty and is repeated/],
  ['root ::= ("a"?){3}', /may be empty and is repeated/],
  ['root ::= "a"{5,2}', /more at least/],
  ['root ::= "a"{2000}', /less than 2000/],
  ['root ::= "a"*+', /repeated twice/],
  ['root ::= *', /end of the line/],
  ['root ::= <[100]>', /no token 100/],
  ['root ::= "a\0"', /NUL/],
  [`root ::= ${'('.repeat(5000)}"a"${')'.repeat(5000)}`, /nested/],
  [
    `root ::= r0\n${Array.from({ length: 60 }, (_, i) => `r${i} ::= r${i + 1} "a" | r${i + 1} "b"`).join('\n')}\nr60 ::= "c"`,
    /ways to begin/,
  ],
]

describe('checkGrammar', () => {
  let t: Tokenizer
  before(async () => {
    t = await Tokenizer.load(HOUSE_MODEL)
  })
  after(() => t.dispose())

  it('lets through what libllama reads', () => {
    for (const text of GOOD) {
      checkGrammar(text, 100)
      const ptr = llama.llama_sampler_init_grammar(t.vocabPtr, text, 'root')
      assert.ok(ptr, text)
      llama.llama_sampler_free(ptr)
    }
  })

  it('refuses the rest with a place', () => {
    for (const [text, says] of BAD)
      assert.throws(
        () => checkGrammar(text, 100),
        (e) =>
          e instanceof KvasirError &&
          e.code === 'GRAMMAR_INVALID' &&
          says.test(e.message) &&
          /line \d+/.test(e.message),
        text.slice(0, 80),
      )
  })

  it('knows the tokens that a grammar asks for', () => {
    assert.deepEqual(namedTokens('root ::= "<[5]>"'), new Set())
    assert.deepEqual(namedTokens('root ::= <[5]> a <[70]>\na ::= <[5]>?'), new Set([5, 70]))
    assert.equal(namedTokens('root ::= <[5]> <end>'), 'any')
    assert.equal(namedTokens('root ::= !<[5]>'), 'any')
  })

  it('writes literals', () => {
    assert.equal(literal('a"\\\n\u0000é😀'), '"a\\"\\\\\\x0a\\x00é😀"')
    checkGrammar(`root ::= ${literal('a"\\\n\u007f\u0000é😀[]')}`, 0)
  })
})
