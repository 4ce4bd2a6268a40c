/** What is sent, before it is text: which parts of which prompts are equal, how long they are, and when they come. */

/** A run of words. Equal keys give equal words; the shorter of two with one key is the beginning of the longer. */
export interface Piece {
  readonly key: string
  readonly tokens: number
}

/** One request. */
export interface Turn {
  /** Text that is ready, or what to make it of. In a conversation: what this turn adds. */
  readonly content: string | readonly Piece[]
  /** Most tokens of the answer. */
  readonly outputTokens: number
}

/** Requests that follow one another: each is sent when the one before is answered, and holds all that was said before. */
export interface Session {
  readonly turns: readonly Turn[]
  /** From the start, in milliseconds; null: as the request rate says. */
  readonly arrivalMs: number | null
}

export function countTurns(sessions: readonly Session[]): number {
  return sessions.reduce((sum, s) => sum + s.turns.length, 0)
}
