/** Conversations: what was said, kept in the browser. All changes are made here. */
import { computed, effect, signal } from '@preact/signals'
import type { FailureInfo } from '../server.ts'
import { isObject, readStored, store } from '../storage.ts'

/** Figures of an answer, from its last chunks. */
export interface AnswerFigures {
  readonly promptTokens: number
  readonly cachedTokens: number
  readonly generatedTokens: number
  /** From the request's arrival at the engine. */
  readonly ttftMs: number
  readonly generatedMs: number
}

export type AnswerState = 'running' | 'complete' | 'cut' | 'stopped' | 'failed'

export type Turn =
  | { readonly role: 'user'; readonly text: string }
  | {
      readonly role: 'assistant'
      readonly text: string
      readonly model: string
      readonly state: AnswerState
      readonly figures: AnswerFigures | null
      readonly failure: FailureInfo | null
    }
export type Answer = Extract<Turn, { readonly role: 'assistant' }>

export interface Conversation {
  readonly id: string
  readonly title: string
  readonly turns: readonly Turn[]
}

const KEY = 'kvasir.conversations'
const UNTITLED = 'New conversation'
const TITLE_LENGTH = 48
/** Text that streams in is kept a moment later. */
const SAVE_MS = 500

const isTurn = (value: unknown): value is Turn =>
  isObject(value) && typeof value['text'] === 'string' && (value['role'] === 'user' || value['role'] === 'assistant')
const isConversation = (value: unknown): value is Conversation =>
  isObject(value) &&
  typeof value['id'] === 'string' &&
  typeof value['title'] === 'string' &&
  Array.isArray(value['turns']) &&
  value['turns'].every(isTurn)
const isList = (value: unknown): value is readonly Conversation[] => Array.isArray(value) && value.every(isConversation)

const fresh = (): Conversation => ({ id: crypto.randomUUID?.() ?? String(Math.random()), title: UNTITLED, turns: [] })

/** An answer that was running when the page was closed has stopped. */
function restored(): readonly Conversation[] {
  const kept = readStored<readonly Conversation[]>(KEY, [], isList)
  const settled = kept.map((c) => ({
    ...c,
    turns: c.turns.map((t) =>
      t.role === 'assistant' && t.state === 'running' ? { ...t, state: 'stopped' as const } : t,
    ),
  }))
  return settled.length ? settled : [fresh()]
}

/** Newest first; never empty. */
export const conversations = signal<readonly Conversation[]>(restored())
export const currentId = signal(conversations.value[0]!.id)
export const current = computed(
  () => conversations.value.find(({ id }) => id === currentId.value) ?? conversations.value[0]!,
)
/** The browser has no room for them: they are gone with the tab. */
export const unsaved = signal(false)

let saving: ReturnType<typeof setTimeout> | undefined
const save = () => {
  clearTimeout(saving)
  saving = undefined
  unsaved.value = !store(KEY, conversations.peek())
}
effect(() => {
  conversations.value
  saving ??= setTimeout(save, SAVE_MS)
})
addEventListener('pagehide', save)

export function find(id: string): Conversation | undefined {
  return conversations.peek().find((c) => c.id === id)
}

/** One that nobody has written in is taken up again. */
export function startConversation(): void {
  const empty = conversations.value.find(({ turns }) => turns.length === 0)
  const next = empty ?? fresh()
  if (!empty) conversations.value = [next, ...conversations.value]
  currentId.value = next.id
}

export function renameConversation(id: string, title: string): void {
  change(id, (c) => ({ ...c, title: title.trim() || UNTITLED }))
}

export function deleteConversation(id: string): void {
  const left = conversations.value.filter((c) => c.id !== id)
  conversations.value = left.length ? left : [fresh()]
  if (currentId.value === id) currentId.value = conversations.value[0]!.id
}

/** Ends the conversation at `turns`; the first message gives it its title. */
export function setTurns(id: string, turns: readonly Turn[]): void {
  change(id, (c) => ({ ...c, turns, title: c.title === UNTITLED ? titleOf(turns[0]?.text ?? '') : c.title }))
}

/** Changes the answer at the end. */
export function setAnswer(id: string, update: (answer: Answer) => Answer): void {
  change(id, (c) => {
    const last = c.turns.at(-1)
    return last?.role === 'assistant' ? { ...c, turns: [...c.turns.slice(0, -1), update(last)] } : c
  })
}

function change(id: string, update: (conversation: Conversation) => Conversation): void {
  conversations.value = conversations.value.map((c) => (c.id === id ? update(c) : c))
}

function titleOf(text: string): string {
  const line = text.trim().split('\n')[0]!
  return (line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line) || UNTITLED
}
