/**
 * Which stored prefixes there are: a forest of full blocks, found by their names (`identity.ts`). A block's name says
 * all that stands before it, so one map finds every block, and blocks of different roots never meet.
 *
 * A block whose children are stored stays: without it they could not be reached. So victims are leaves, and which leaf
 * goes first is decided by what is lost: cost of computing it again x chance that it is asked for again. Cost grows
 * with the position (attention looks at all rows before it), the chance halves with each `halfLife` of use:
 *
 *   value(t) = (1 + position / attentionParity) * 2^-((t - lastUse) / halfLife)
 *   score    = lastUse + halfLife * log2(1 + position / attentionParity)
 *
 * The logarithm of the first, without its part that is the same for all, is the second: it does not change as time
 * passes, so a heap holds the order and a victim costs O(log n). Time t counts blocks stored and calls, not seconds;
 * the default half-life is the number of blocks in the index, i.e. one turnover of a full cache. With equal costs it is
 * LRU.
 *
 * It emits nothing; what its methods return is what happened.
 */
import { KvasirError } from '../contract/errors.ts'
import type { BlockHash, Medium } from '../contract/events.ts'

/** A stored block. Only the index changes it, except for `place`. */
export interface PrefixNode<Place> {
  readonly hash: BlockHash
  /** Null: the text's first block. */
  readonly parent: PrefixNode<Place> | null
  /** Ids, [pageTokens]. */
  readonly tokens: Uint32Array
  /** Position of its first token. */
  readonly position: number
  /** What the owner of the index keeps with it; it may put another there, e.g. when a block moves. */
  place: Place
  /** How often it is pinned. */
  readonly pins: number
  /** False once it was removed. */
  readonly stored: boolean
}

export interface PrefixIndexOptions<Place> {
  /** Tokens of a block. */
  readonly pageTokens: number
  /** For {@link PrefixIndex.snapshot}. Default `device`. */
  readonly mediumOf?: (place: Place) => Medium
  /** For {@link PrefixIndex.evictableOf}; it must not change while the block is stored. Default: all are of group 0. */
  readonly groupOf?: (place: Place) => number
  /**
   * Position at which a token's attention costs as much as all the rest of the model. Default 4096: about 6 times the
   * model width by count of operations.
   */
  readonly attentionParity?: number
  /** See above, in blocks stored. Default: as many as there are, at least 64. */
  readonly halfLife?: number
}

/** A block as it goes into an event; parents stand before their children. */
export interface StoredBlock {
  readonly hash: BlockHash
  readonly parent: BlockHash | null
  readonly tokens: readonly number[]
  readonly medium: Medium
}

interface Node<Place> extends PrefixNode<Place> {
  readonly parent: Node<Place> | null
  children: Set<Node<Place>> | null
  pins: number
  /** Own pins > 0, plus children of which this is > 0: 0 means that nothing in this subtree is pinned. */
  held: number
  stored: boolean
  /** log2 of the cost relative to a block at position 0. */
  readonly weight: number
  score: number
  /** Order of creation: decides between equal scores, so that runs repeat. */
  readonly order: number
  /** Place in the heap; -1: not a candidate. */
  at: number
}

interface Internals {
  readonly nodes: ReadonlyMap<BlockHash, Node<unknown>>
  readonly heap: readonly Node<unknown>[]
  readonly evictable: number
  readonly groups: ReadonlyMap<number, number>
  readonly groupOf: (place: unknown) => number
  readonly pageTokens: number
}

const DEFAULT_ATTENTION_PARITY = 4096
const LEAST_HALF_LIFE = 64

let look: (index: PrefixIndex<unknown>) => Internals

/**
 * Walks everything that must always hold.
 * @throws Error with what does not
 */
export function checkPrefixIndex<Place>(index: PrefixIndex<Place>): void {
  const { nodes, heap, evictable, groups, groupOf, pageTokens } = look(index as unknown as PrefixIndex<unknown>)
  const must = (holds: boolean, what: string) => {
    if (!holds) throw new Error(`prefix index: ${what}`)
  }
  const free = new Map<number, number>()
  let candidates = 0
  const seen = new Set<unknown>()
  for (const [hash, node] of nodes) {
    const name = hash.slice(0, 8)
    must(node.hash === hash && node.stored, `${name} is filed under a name that is not its own, or was removed`)
    must(node.tokens.length === pageTokens, `${name} has ${node.tokens.length} tokens`)
    must(node.pins >= 0, `${name} has ${node.pins} pins`)
    must(node.position === (node.parent ? node.parent.position + pageTokens : 0), `${name} is at a wrong position`)
    if (node.parent) {
      must(nodes.get(node.parent.hash) === node.parent, `the parent of ${name} is not stored`)
      must(node.parent.children?.has(node) ?? false, `the parent of ${name} does not know it`)
      must(seen.has(node.parent), `${name} stands before its parent`)
    }
    seen.add(node)
    const children = [...(node.children ?? [])]
    for (const child of children) must(child.parent === node && child.stored, `a child of ${name} is not its own`)
    const held = (node.pins > 0 ? 1 : 0) + children.filter((c) => c.held > 0).length
    must(node.held === held, `${name} says that ${node.held} hold it, not ${held}`)
    const group = groupOf(node.place)
    if (held === 0) free.set(group, (free.get(group) ?? 0) + 1)
    const isCandidate = held === 0 && children.length === 0
    if (isCandidate) candidates++
    must(node.at >= 0 === isCandidate, `${name} is ${isCandidate ? 'not ' : ''}among the victims`)
    if (node.at >= 0) must(heap[node.at] === node, `${name} is not at its place in the heap`)
  }
  for (const group of new Set([...groups.keys(), ...free.keys()])) {
    const [says, are] = [groups.get(group) ?? 0, free.get(group) ?? 0]
    must(says === are, `says that ${says} of group ${group} can be evicted, not ${are}`)
  }
  const sum = [...free.values()].reduce((a, b) => a + b, 0)
  must(evictable === sum, `says that ${evictable} can be evicted, not ${sum}`)
  must(heap.length === candidates, `${heap.length} victims in the heap, not ${candidates}`)
  for (let i = 1; i < heap.length; i++) must(!isBefore(heap[i]!, heap[(i - 1) >> 1]!), `heap out of order at ${i}`)
}

function isBefore(a: Node<unknown>, b: Node<unknown>): boolean {
  return a.score < b.score || (a.score === b.score && a.order < b.order)
}

/** A block and all before it, the last first. */
function lineage<Place>(node: Node<Place> | null): Node<Place>[] {
  const chain: Node<Place>[] = []
  for (let n = node; n; n = n.parent) chain.push(n)
  return chain
}

export class PrefixIndex<Place> {
  static {
    look = (index) => ({
      nodes: index.#nodes,
      heap: index.#heap,
      evictable: index.evictable,
      groups: index.#evictable,
      groupOf: index.#groupOf as (place: unknown) => number,
      pageTokens: index.pageTokens,
    })
  }

  readonly pageTokens: number
  readonly #mediumOf: (place: Place) => Medium
  readonly #groupOf: (place: Place) => number
  readonly #attentionParity: number
  readonly #fixedHalfLife: number | null
  /** In order of insertion, which puts parents before children. */
  readonly #nodes = new Map<BlockHash, Node<Place>>()
  /** Binary heap of the leaves that are not pinned; the victim is at 0. */
  readonly #heap: Node<Place>[] = []
  /** How many of each group could be evicted. */
  readonly #evictable = new Map<number, number>()
  #now = 0
  #nextOrder = 0

  /** @throws KvasirError INVALID_ARGUMENT */
  constructor(options: PrefixIndexOptions<Place>) {
    const { pageTokens, attentionParity = DEFAULT_ATTENTION_PARITY, halfLife } = options
    if (!Number.isInteger(pageTokens) || pageTokens < 1)
      throw new KvasirError('INVALID_ARGUMENT', `pageTokens must be a whole number above 0, got ${pageTokens}`)
    if (!(attentionParity > 0) || (halfLife !== undefined && !(halfLife >= 0)))
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `attentionParity ${attentionParity} and halfLife ${halfLife} must be > 0`,
      )
    this.pageTokens = pageTokens
    this.#mediumOf = options.mediumOf ?? (() => 'device')
    this.#groupOf = options.groupOf ?? (() => 0)
    this.#attentionParity = attentionParity
    this.#fixedHalfLife = halfLife ?? null
  }

  /** Blocks stored. */
  get size(): number {
    return this.#nodes.size
  }

  /** Blocks that could be evicted one after the other: all but the pinned ones and those before them. */
  get evictable(): number {
    let sum = 0
    for (const n of this.#evictable.values()) sum += n
    return sum
  }

  /** The same of one group. */
  evictableOf(group: number): number {
    return this.#evictable.get(group) ?? 0
  }

  get(hash: BlockHash): PrefixNode<Place> | null {
    return this.#nodes.get(hash) ?? null
  }

  /**
   * Stores the blocks of a chain that are not stored yet, and touches all of it.
   * @param hashes names, [blocks], from the text's first block on, or from the block behind `under` on
   * @param tokens ids, [blocks * pageTokens] or more
   * @param places [blocks]; only those of the blocks in the answer are kept, the others stay the caller's
   * @returns the new blocks: always the last ones of the chain
   * @throws KvasirError INVALID_ARGUMENT; then nothing was stored
   */
  insert(
    hashes: readonly BlockHash[],
    tokens: ArrayLike<number>,
    places: ArrayLike<Place>,
    under: PrefixNode<Place> | null = null,
  ): PrefixNode<Place>[] {
    const page = this.pageTokens
    if (tokens.length < hashes.length * page || places.length < hashes.length)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `${hashes.length} blocks need ${hashes.length * page} tokens and ${hashes.length} places, got ${tokens.length} and ${places.length}`,
      )
    if (under && this.#nodes.get(under.hash) !== under)
      throw new KvasirError('INVALID_ARGUMENT', `block ${under.hash} is not stored any more: nothing can follow it`)
    let parent = under as Node<Place> | null
    const chain: Node<Place>[] = []
    let known = 0
    for (; known < hashes.length; known++) {
      const node = this.#nodes.get(hashes[known]!)
      if (!node) break
      this.#checkParent(node, parent)
      chain.push(node)
      parent = node
    }
    const seen = new Set<BlockHash>()
    for (let i = known; i < hashes.length; i++) {
      const node = this.#nodes.get(hashes[i]!)
      // its parents would be stored, were it a block of this chain
      if (node || seen.has(hashes[i]!))
        throw new KvasirError('INVALID_ARGUMENT', `block ${hashes[i]} stands in another chain; names must be chained`)
      seen.add(hashes[i]!)
    }
    const fresh: Node<Place>[] = []
    for (let i = known; i < hashes.length; i++) {
      const ids = Uint32Array.from({ length: page }, (_, k) => tokens[i * page + k]!)
      parent = this.#add(hashes[i]!, parent, ids, places[i]!)
      fresh.push(parent)
    }
    this.#now += fresh.length
    this.#use([...lineage(under as Node<Place> | null), ...chain, ...fresh])
    return fresh
  }

  /** The blocks of the longest stored beginning of a chain, touched; [matched]. */
  longest(hashes: readonly BlockHash[]): PrefixNode<Place>[] {
    const chain: Node<Place>[] = []
    for (const hash of hashes) {
      const node = this.#nodes.get(hash)
      if (!node || node.parent !== (chain[chain.length - 1] ?? null)) break
      chain.push(node)
    }
    if (chain.length > 0) this.#use(chain)
    return chain
  }

  /** Blocks that {@link longest} would give, without touching them. */
  match(hashes: readonly BlockHash[]): number {
    let n = 0
    let last: Node<Place> | null = null
    for (const hash of hashes) {
      const node: Node<Place> | undefined = this.#nodes.get(hash)
      if (!node || node.parent !== last) break
      last = node
      n++
    }
    return n
  }

  /** Marks a block and all before it as used now. */
  touch(node: PrefixNode<Place>): void {
    if (node.stored) this.#use(lineage(node as Node<Place>))
  }

  /** Keeps a block, and so all before it, until it is unpinned as often: for a whole match, pin its last block. */
  pin(node: PrefixNode<Place>): void {
    const own = node as Node<Place>
    if (!own.stored) throw new Error(`block ${node.hash} was removed and cannot be pinned`)
    own.pins++
    if (own.pins === 1) this.#hold(own)
  }

  /** A block that was removed while pinned may still be unpinned. */
  unpin(node: PrefixNode<Place>): void {
    const own = node as Node<Place>
    if (own.pins === 0) throw new Error(`block ${node.hash} is not pinned`)
    own.pins--
    if (own.pins === 0 && own.stored) this.#release(own)
  }

  /** The block that would be evicted next; null: none can be. O(1). */
  victim(): PrefixNode<Place> | null {
    return this.#heap[0] ?? null
  }

  /** Removes up to `blocks` victims, each the least worth keeping at its moment; O(log n) each. */
  evict(blocks: number): PrefixNode<Place>[] {
    const gone: PrefixNode<Place>[] = []
    while (gone.length < blocks && this.#heap.length > 0) {
      const node = this.#heap[0]!
      this.#drop(node)
      gone.push(node)
    }
    return gone
  }

  /**
   * Removes a block and all that follows it, pinned or not: for blocks that turn out to be lost.
   * @returns what was removed, children before parents; empty when it was not stored
   */
  remove(node: PrefixNode<Place>): PrefixNode<Place>[] {
    const own = node as Node<Place>
    if (!own.stored) return []
    const subtree: Node<Place>[] = [own]
    for (let i = 0; i < subtree.length; i++) for (const child of subtree[i]!.children ?? []) subtree.push(child)
    subtree.reverse()
    for (const gone of subtree) this.#drop(gone)
    return subtree
  }

  /** Removes everything, pinned or not; returns it, children before parents. */
  clear(): PrefixNode<Place>[] {
    const all = [...this.#nodes.values()].reverse()
    for (const node of all) {
      node.stored = false
      node.at = -1
    }
    this.#nodes.clear()
    this.#heap.length = 0
    this.#evictable.clear()
    return all
  }

  snapshot(): StoredBlock[] {
    return Array.from(this.#nodes.values(), (node) => ({
      hash: node.hash,
      parent: node.parent?.hash ?? null,
      tokens: Array.from(node.tokens),
      medium: this.#mediumOf(node.place),
    }))
  }

  // -------------------------------------------------------------------------------------------------------------------

  #checkParent(node: Node<Place>, parent: Node<Place> | null): void {
    if (node.parent !== parent)
      throw new KvasirError('INVALID_ARGUMENT', `block ${node.hash} follows another block; names must be chained`)
  }

  #add(hash: BlockHash, parent: Node<Place> | null, tokens: Uint32Array, place: Place): Node<Place> {
    const position = parent ? parent.position + this.pageTokens : 0
    const node: Node<Place> = {
      hash,
      parent,
      tokens,
      position,
      place,
      children: null,
      pins: 0,
      held: 0,
      stored: true,
      weight: Math.log2(1 + position / this.#attentionParity),
      score: 0,
      order: this.#nextOrder++,
      at: -1,
    }
    this.#nodes.set(hash, node)
    this.#count(node, 1)
    if (parent) {
      parent.children ??= new Set()
      parent.children.add(node)
      this.#heapRemove(parent)
    }
    this.#heapPut(node)
    return node
  }

  /** Takes a block without children out. */
  #drop(node: Node<Place>): void {
    this.#heapRemove(node)
    this.#nodes.delete(node.hash)
    if (node.held > 0) this.#release(node)
    this.#count(node, -1)
    node.stored = false
    const { parent } = node
    if (!parent) return
    parent.children!.delete(node)
    this.#offer(parent)
  }

  #use(chain: readonly Node<Place>[]): void {
    this.#now++
    const halfLife = this.#fixedHalfLife ?? Math.max(LEAST_HALF_LIFE, this.#nodes.size)
    for (const node of chain) {
      node.score = this.#now + halfLife * node.weight
      if (node.at >= 0) this.#settle(node)
    }
  }

  /** One more reason to keep a block; the first one is a reason for its parent too. */
  #hold(node: Node<Place>): void {
    for (let n: Node<Place> | null = node; n; n = n.parent) {
      n.held++
      if (n.held > 1) return
      this.#count(n, -1)
      this.#heapRemove(n)
    }
  }

  /** The opposite of {@link #hold}. */
  #release(node: Node<Place>): void {
    for (let n: Node<Place> | null = node; n; n = n.parent) {
      n.held--
      if (n.held > 0) return
      this.#count(n, 1)
      this.#offer(n)
    }
  }

  #count({ place }: Node<Place>, by: 1 | -1): void {
    const group = this.#groupOf(place)
    this.#evictable.set(group, this.evictableOf(group) + by)
  }

  /** Makes a block a candidate if it can be one. */
  #offer(node: Node<Place>): void {
    if (node.held === 0 && (node.children?.size ?? 0) === 0 && this.#nodes.get(node.hash) === node) this.#heapPut(node)
  }

  // heap --------------------------------------------------------------------------------------------------------------

  #heapPut(node: Node<Place>): void {
    if (node.at >= 0) return
    node.at = this.#heap.length
    this.#heap.push(node)
    this.#settle(node)
  }

  #heapRemove(node: Node<Place>): void {
    const at = node.at
    if (at < 0) return
    node.at = -1
    const last = this.#heap.pop()!
    if (last === node) return
    this.#heap[at] = last
    last.at = at
    this.#settle(last)
  }

  /** Moves a node to where its score belongs. */
  #settle(node: Node<Place>): void {
    const heap = this.#heap
    let at = node.at
    while (at > 0) {
      const up = (at - 1) >> 1
      if (!isBefore(node, heap[up]!)) break
      heap[at] = heap[up]!
      heap[at]!.at = at
      at = up
    }
    for (;;) {
      let down = 2 * at + 1
      if (down >= heap.length) break
      if (down + 1 < heap.length && isBefore(heap[down + 1]!, heap[down]!)) down++
      if (!isBefore(heap[down]!, node)) break
      heap[at] = heap[down]!
      heap[at]!.at = at
      at = down
    }
    heap[at] = node
    node.at = at
  }
}
