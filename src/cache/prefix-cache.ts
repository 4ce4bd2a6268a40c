/**
 * Stored prefixes: the index of full blocks (`prefix-index.ts`) over the store's pages, and the tiers below it. Every full
 * block that is computed gets a name and becomes a stored prefix at once, whoever computed it; every request takes what it
 * finds. Nothing needs to be switched on.
 *
 *   memory   pages of the store that the index holds; evicted when room is needed, the least worth keeping first
 *   host     evicted blocks, in ordinary memory (off by default: on a CPU it is the same memory)
 *   disk     blocks that no request uses any more are written behind, and found again after a restart
 */
import { setImmediate } from 'node:timers/promises'
import { KvasirError } from '../contract/errors.ts'
import type { BlockHash, EngineEvent, EvictCause, Medium } from '../contract/events.ts'
import type { SequenceId } from '../contract/units.ts'
import { PAGE_CELLS } from './arena.ts'
import type { BlockRef } from './column.ts'
import { blockHashes, type CacheIdentity, identityRoot } from './identity.ts'
import { checkPrefixIndex, PrefixIndex, type PrefixNode, type StoredBlock } from './prefix-index.ts'
import { rotationName } from './rotation.ts'
import type { KvSequence } from './sequence.ts'
import { readSession, writeSession } from './session-file.ts'
import type { KvStore } from './store.ts'
import { DiskTier } from './tiers/disk.ts'
import { HostTier } from './tiers/host.ts'
import type { Tier } from './tiers/tier.ts'

export interface PrefixCacheOptions {
  /** 0: none. */
  readonly hostCacheBytes: number
  /** Folder; null: none. */
  readonly diskCache: string | null
  readonly diskCacheBytes: number
  readonly emit: (event: EngineEvent) => void
}

/** How full a tier is. */
export interface TierUse {
  readonly medium: 'host' | 'disk'
  readonly blocks: number
  readonly bytes: number
  readonly limitBytes: number
}

/** Stored blocks in more pieces than this are moved together; as many views are read one by one (`executor/place.ts`). */
const MOST_PIECES = 4
/** Rate of a tier of which nothing was read yet, bytes per second. */
const ASSUMED_RATE = 200 * 2 ** 20
/** Pages that are read for the disk in one go, before others get their turn. */
const PAGES_PER_TURN = 8

type Node = PrefixNode<BlockRef>

export class PrefixCache {
  readonly #store: KvStore
  readonly #identity: CacheIdentity
  readonly #emit: (event: EngineEvent) => void
  readonly #options: PrefixCacheOptions
  /** Of all arenas: chains have roots of their own in each. */
  readonly #index = new PrefixIndex<BlockRef>({ pageTokens: PAGE_CELLS, groupOf: ({ arena }) => arena })
  /** From fast to slow. */
  readonly #tiers: readonly Tier[]
  readonly #roots = new Map<string, BlockHash>()
  /** The last block of each sequence that the index has: it and all before it stay. */
  readonly #pins = new Map<SequenceId, Node>()
  /** Chains to be written behind, by their last block. */
  readonly #unwritten = new Set<Node>()
  #writing: Promise<void> | null = null
  /** Counts calls of `clear`: what began before one must not bring back what it forgot. */
  #clears = 0
  #closed = false

  private constructor(store: KvStore, identity: CacheIdentity, tiers: readonly Tier[], o: PrefixCacheOptions) {
    this.#store = store
    this.#identity = identity
    this.#tiers = tiers
    this.#emit = o.emit
    this.#options = o
  }

  /** @param identity of the engine, without tenant and salt. @throws KvasirError INVALID_ARGUMENT */
  static async open(store: KvStore, identity: CacheIdentity, o: PrefixCacheOptions): Promise<PrefixCache> {
    const tiers: Tier[] = []
    if (o.hostCacheBytes > 0) tiers.push(new HostTier({ maxBytes: o.hostCacheBytes }))
    if (o.diskCache !== null)
      tiers.push(await DiskTier.open(o.diskCache, identityRoot(identity), { maxBytes: o.diskCacheBytes }))
    return new PrefixCache(store, identity, tiers, o)
  }

  // names ----------------------------------------------------------------------------------------------------------------

  /** Root of the names of a tenant's blocks in an arena. */
  root(tenant: string, salt: string, arena = 0): BlockHash {
    const key = JSON.stringify([tenant, salt, arena])
    let root = this.#roots.get(key)
    if (root === undefined) {
      root = identityRoot({ ...this.#identity, kv: this.#formatOf(arena), tenant, salt })
      // Bounded: tenants come and go.
      if (this.#roots.size >= 1024) this.#roots.clear()
      this.#roots.set(key, root)
    }
    return root
  }

  /** What of an arena its blocks' bytes depend on: those of other types are never found. */
  #formatOf(arena: number): CacheIdentity['kv'] {
    const { kv } = this.#identity
    if (arena === 0) return kv
    const { shape } = this.#store.rowArena(arena)
    const own = `${shape.valuesTransposed ? 'transposed' : 'rows'} ${rotationName(shape)}`
    return { keys: shape.keyType, values: shape.valueType, layout: `${kv.layout}; ${own}` }
  }

  /** Adds the names of the blocks of `tokens` that are full and have none yet. */
  nameBlocks(root: BlockHash, tokens: readonly number[], hashes: BlockHash[]): void {
    const from = hashes.length * PAGE_CELLS
    if (tokens.length - from < PAGE_CELLS) return
    hashes.push(...blockHashes(hashes.at(-1) ?? root, tokens.slice(from), PAGE_CELLS))
  }

  // memory ---------------------------------------------------------------------------------------------------------------

  /** Blocks from the text's beginning on that are in memory. */
  longest(hashes: readonly BlockHash[]): number {
    // A block is only stored while those before it are: so the end of the stored ones can be searched by halves.
    let [low, high] = [0, hashes.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#index.get(hashes[middle]!)) low = middle + 1
      else high = middle
    }
    return low
  }

  /** Pages of the store's first arena that could be freed: its own, and those that others borrowed. */
  get evictablePages(): number {
    const { arenas } = this.#store
    return arenas.reduce((sum, _, i) => sum + this.#store.pagesReturned(i, this.#index.evictableOf(i)), 0)
  }

  /** Bytes of the blocks that no request uses. */
  get evictableBytes(): number {
    return this.#store.arenas.reduce((sum, a, i) => sum + this.#index.evictableOf(i) * a.pageBytes, 0)
  }

  /** Blocks in memory. */
  get size(): number {
    return this.#index.size
  }

  /** Puts the first `blocks` stored blocks into an empty sequence. */
  adopt(sequence: KvSequence, hashes: readonly BlockHash[], blocks: number): void {
    if (blocks === 0) return
    const nodes = this.#index.longest(hashes.slice(0, blocks))
    if (nodes.length < blocks)
      throw new KvasirError('INVALID_ARGUMENT', `${blocks} stored blocks were asked for, and there are ${nodes.length}`)
    this.#moveTogether(nodes)
    const places = nodes.map((n) => n.place)
    for (const place of places) this.#store.holdPage(place)
    this.#store.adopt(sequence, places, 0)
    this.#pin(sequence, nodes.at(-1)!)
    for (const tier of this.#tiers) tier.touch(hashes.slice(0, blocks))
  }

  /**
   * Copies stored blocks that lie in many pieces to pages that follow each other: a sequence in pieces is gathered in every
   * step, which costs more after a few of them. Not when somebody else uses them, or there is no room.
   */
  #moveTogether(nodes: readonly Node[]): void {
    const pieces = nodes.filter((n, i) => i === 0 || n.place.page !== nodes[i - 1]!.place.page + 1)
    if (pieces.length <= MOST_PIECES || nodes.some((n) => this.#store.isPageShared(n.place))) return
    const { arena: index } = nodes[0]!.place
    const run = this.#store.takeRun(index, nodes.length)
    if (!run) return
    const arena = this.#store.rowArena(index)
    for (const [i, node] of nodes.entries()) {
      arena.copyPage(node.place.page, run[i]!.page)
      this.#store.releasePage(node.place)
      node.place = run[i]!
    }
  }

  /** A forked sequence uses the same blocks. */
  share(from: KvSequence, to: KvSequence): void {
    const node = this.#pins.get(from.id)
    if (node) this.#pin(to, node)
  }

  /** Tells of blocks [from, to) of a sequence that are full now. What is stored already stays as it is. */
  publish(
    sequence: KvSequence,
    hashes: readonly BlockHash[],
    tokens: readonly number[],
    from: number,
    to: number,
  ): void {
    if (sequence.layout !== 'uniform') return
    const under = from === 0 ? null : this.#index.get(hashes[from - 1]!)
    // After `clear` the blocks before are not stored: without them these would not be found.
    if (from > 0 && !under) return
    const places = sequence.columns[0]!.blocks.slice(from, to)
    const fresh = this.#index.insert(
      hashes.slice(from, to),
      tokens.slice(from * PAGE_CELLS, to * PAGE_CELLS),
      places,
      under,
    )
    for (const node of fresh) this.#store.holdPage(node.place)
    this.#stored(fresh, 'device')
    this.#pin(sequence, this.#index.get(hashes[to - 1]!)!)
  }

  /** A sequence is about to be freed: its blocks may be evicted from now on, and are written behind. */
  release(sequence: KvSequence): void {
    const node = this.#pins.get(sequence.id)
    if (!node) return
    this.#pins.delete(sequence.id)
    this.#index.unpin(node)
    if (node.stored) this.#writeBehind(node)
  }

  /**
   * Makes room for so many more pages of an arena, as far as that can be done: blocks that no request uses are given up.
   * @param ahead pages of the store's first arena that are made free beyond what is needed, if any have to be
   * @returns blocks that were given up
   */
  makeRoom(arena: number, pages: number, cause: EvictCause, ahead = 0): number {
    const missing = () => this.#store.pagesToBorrow(arena, pages) - this.#store.pools[0]!.freePages
    if (missing() <= 0) return 0
    this.#store.reclaim()
    return missing() > 0 ? this.evict(missing() + ahead, cause) : 0
  }

  /**
   * Gives up blocks until `pages` more pages of the store's first arena are free, or none can be given up. What was lent and is not
   * used is free besides. Tiers get what they do not have yet.
   * @returns blocks that were given up: those of other types are smaller or larger than a page of the first arena
   */
  evict(pages: number, cause: EvictCause): number {
    this.#store.reclaim()
    const [home] = this.#store.pools
    const enough = home!.freePages + pages
    const gone: Node[] = []
    const offloaded = new Map(this.#tiers.map((tier) => [tier, [] as Node[]]))
    while (home!.freePages < enough) {
      const [node] = this.#index.evict(1)
      if (!node) break
      gone.push(node)
      // To the disk too: the write-behind may not have come to it yet.
      for (const tier of this.#tiers) if (!tier.has(node.hash) && this.#put(tier, node)) offloaded.get(tier)!.push(node)
      if (this.#unwritten.delete(node)) this.#writeRest(node)
      this.#store.releasePage(node.place)
      this.#store.reclaim()
    }
    if (!gone.length) return 0
    this.#emit({ kind: 'BlockRemoved', block_hashes: gone.map((n) => n.hash), medium: 'device' })
    this.#emit({ kind: 'pages-evict', pages: gone.length, bytes: this.#bytesOf(gone), cause })
    for (const [{ medium: to }, nodes] of offloaded)
      if (nodes.length) this.#emit({ kind: 'pages-offload', pages: nodes.length, bytes: this.#bytesOf(nodes), to })
    return gone.length
  }

  #bytesOf(nodes: readonly Node[]): number {
    return nodes.reduce((sum, { place }) => sum + this.#store.arenas[place.arena]!.pageBytes, 0)
  }

  // tiers ----------------------------------------------------------------------------------------------------------------

  /**
   * Loads the blocks that follow those in memory from the tiers, where that is expected to be quicker than to compute them.
   * @param arena of all of them
   * @param prefillMs measured time of so many rows; null while nothing was measured: then it loads
   * @returns blocks loaded, by where they were; null when there is nothing to do
   */
  load(
    arena: number,
    hashes: readonly BlockHash[],
    tokens: readonly number[],
    prefillMs: (rows: number) => number | null,
  ): Promise<ReadonlyMap<Medium, number>> | null {
    if (!this.#tiers.length || this.#closed) return null
    const inMemory = this.longest(hashes)
    // The last row is always computed: it gives the first token.
    const most = Math.floor((tokens.length - 1) / PAGE_CELLS)
    let blocks = inMemory
    let loadMs = 0
    const { pageBytes } = this.#store.arenas[arena]!
    for (; blocks < Math.min(most, hashes.length); blocks++) {
      const tier = this.#tiers.find((t) => t.has(hashes[blocks]!))
      if (!tier) break
      loadMs += (1000 * pageBytes) / (tier.stats.readBytesPerSecond ?? ASSUMED_RATE)
    }
    if (blocks === inMemory) return null
    const recomputeMs = prefillMs((blocks - inMemory) * PAGE_CELLS)
    if (recomputeMs !== null && loadMs > recomputeMs) {
      this.#emit({ kind: 'load-decline', pages: blocks - inMemory, loadMs, recomputeMs })
      return null
    }
    return this.#load(arena, hashes.slice(0, blocks), tokens, inMemory)
  }

  async #load(
    arena: number,
    hashes: readonly BlockHash[],
    tokens: readonly number[],
    from: number,
  ): Promise<ReadonlyMap<Medium, number>> {
    const start = performance.now()
    let under = from === 0 ? null : this.#index.get(hashes[from - 1]!)
    if (under) this.#index.pin(under)
    const counts = new Map<Medium, number>()
    const clears = this.#clears
    let at = from
    try {
      while (at < hashes.length) {
        const tier = this.#tiers.find((t) => t.has(hashes[at]!))
        if (!tier) break
        const before = at
        for await (const payload of tier.getMany(hashes.slice(at))) {
          if (this.#closed || this.#clears !== clears) return counts
          const ids = tokens.slice(at * PAGE_CELLS, (at + 1) * PAGE_CELLS)
          const next = this.#place(arena, hashes[at]!, ids, payload, under, 'load')
          if (!next) return counts
          if (under) this.#index.unpin(under)
          this.#index.pin(next)
          under = next
          counts.set(tier.medium, (counts.get(tier.medium) ?? 0) + 1)
          at++
          // A tier may go on further than the one that should serve: the faster one first.
          if (at < hashes.length && this.#tiers.find((t) => t.has(hashes[at]!)) !== tier) break
        }
        if (at === before) break
      }
      return counts
    } finally {
      if (under && !this.#closed) this.#index.unpin(under)
      const ms = performance.now() - start
      const { pageBytes } = this.#store.arenas[arena]!
      for (const [medium, n] of counts)
        this.#emit({ kind: 'pages-load', pages: n, bytes: n * pageBytes, from: medium, ms })
    }
  }

  /** Puts a loaded block into a page and into the index; null when there is no room or the bytes do not fit. */
  #place(
    index: number,
    hash: BlockHash,
    tokens: readonly number[],
    payload: Uint8Array,
    under: Node | null,
    cause: EvictCause,
  ): Node | null {
    const known = this.#index.get(hash)
    if (known) return known
    const arena = this.#store.rowArena(index)
    if (payload.byteLength !== arena.pageBytes) return null
    this.makeRoom(index, 1, cause)
    const place = this.#store.takePage(index, under?.place.page ?? null)
    if (!place) return null
    arena.writePage(place.page, payload)
    const fresh = this.#index.insert([hash], tokens, [place], under)
    this.#stored(fresh, 'device')
    return fresh[0]!
  }

  /** Writes a chain to the disk in the background, a few pages at a time. */
  #writeBehind(last: Node): void {
    if (!this.#disk) return
    this.#unwritten.add(last)
    this.#writing ??= this.#write().finally(() => {
      this.#writing = null
      // Added in the same turn as its loop came to an end.
      const late = [...this.#unwritten].at(-1)
      if (late && !this.#closed) this.#writeBehind(late)
    })
  }

  /** The end of a chain was evicted: what of it is left is still to be written. */
  #writeRest(gone: Node): void {
    let last = gone.parent
    while (last && !last.stored) last = last.parent
    if (last) this.#writeBehind(last)
  }

  get #disk(): Tier | undefined {
    return this.#tiers.find((t) => t.medium === 'disk')
  }

  async #write(): Promise<void> {
    const disk = this.#disk!
    let left = PAGES_PER_TURN
    for (const last of this.#unwritten) {
      this.#unwritten.delete(last)
      const chain: Node[] = []
      // All of it: a block can be missing in front of others, when its file was damaged or lost.
      for (let n: Node | null = last; n; n = n.parent) if (!disk.has(n.hash)) chain.push(n)
      // Parents first: a block is only found through those before it.
      for (const node of chain.reverse()) {
        if (--left === 0) {
          await setImmediate()
          left = PAGES_PER_TURN
        }
        if (this.#closed || !node.stored) break
        if (this.#put(disk, node)) continue
        // More than may wait for the disk: there is time.
        await disk.flush()
        if (!node.stored || !this.#put(disk, node)) break
      }
    }
  }

  #put(tier: Tier, { hash, parent, tokens, place }: Node): boolean {
    const payload = this.#store.rowArena(place.arena).readPage(place.page)
    return tier.put({ hash, parent: parent?.hash ?? null, tokens, payload })
  }

  get hostBytes(): number {
    return this.#tiers.find((t) => t.medium === 'host')?.stats.bytes ?? 0
  }

  get diskBytes(): number {
    return this.#disk?.stats.bytes ?? 0
  }

  /** What is kept below the memory, from fast to slow. */
  get tiers(): TierUse[] {
    const { hostCacheBytes, diskCacheBytes } = this.#options
    return this.#tiers.map(({ medium, stats: { blocks, bytes } }) =>
      medium === 'host'
        ? { medium, blocks, bytes, limitBytes: hostCacheBytes }
        : { medium: 'disk', blocks, bytes, limitBytes: diskCacheBytes },
    )
  }

  /** Why a tier is off, for people; null while all work. */
  get problem(): string | null {
    return this.#tiers.map((t) => t.problem).find((p) => p !== null) ?? null
  }

  /** Resolves when all blocks that no request uses are on the disk, or were dropped. */
  async flush(): Promise<void> {
    while (this.#writing) await this.#writing
    for (const tier of this.#tiers) await tier.flush()
  }

  // sessions -------------------------------------------------------------------------------------------------------------

  /**
   * Writes the stored blocks of a text to a file; the tokens that they stand for.
   * @throws KvasirError INVALID_ARGUMENT when nothing of it is stored, GGUF_IO
   */
  async save(path: string, root: BlockHash, tokens: readonly number[], identity: CacheIdentity): Promise<number> {
    const hashes: BlockHash[] = []
    this.nameBlocks(root, tokens, hashes)
    const nodes = this.#index.longest(hashes)
    const last = nodes.at(-1)
    if (!last)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `nothing of this prompt is in the cache: a session is saved after it was used, and holds whole blocks of ${PAGE_CELLS} tokens ` +
          "in the engine's own cache types",
      )
    this.#index.pin(last)
    const clears = this.#clears
    const read = ({ place }: Node): Uint8Array => {
      this.#checkSame(clears)
      return this.#store.rowArena(place.arena).readPage(place.page)
    }
    try {
      const rows = nodes.length * PAGE_CELLS
      const head = { identity, tokens: tokens.slice(0, rows), rows, pageTokens: PAGE_CELLS }
      await writeSession(path, head, pages(nodes, read))
    } finally {
      this.#index.unpin(last)
    }
    return nodes.length * PAGE_CELLS
  }

  /** Makes a saved session's blocks stored prefixes; the tokens that they stand for. @throws KvasirError SESSION_INVALID, GGUF_IO, KV_BUDGET */
  async restore(path: string, root: BlockHash, identity: CacheIdentity): Promise<number> {
    await using session = await readSession(path, identity)
    const hashes: BlockHash[] = []
    const tokens: number[] = Array.from(session.tokens)
    this.nameBlocks(root, tokens, hashes)
    const { pageBytes } = this.#store.home
    const clears = this.#clears
    let under: Node | null = null
    let at = 0
    try {
      for await (const payload of session.read()) {
        if (at === hashes.length) break
        this.#checkSame(clears)
        if (session.pageTokens !== PAGE_CELLS || payload.byteLength !== pageBytes)
          throw new KvasirError(
            'SESSION_INVALID',
            `session ${path}: block ${at} has ${payload.byteLength} bytes for ${session.pageTokens} tokens; here a block has ` +
              `${pageBytes} for ${PAGE_CELLS}`,
            { file: path, block: at },
          )
        const ids = tokens.slice(at * PAGE_CELLS, (at + 1) * PAGE_CELLS)
        const next: Node | null = this.#place(0, hashes[at]!, ids, payload, under, 'session')
        if (!next)
          throw new KvasirError(
            'KV_BUDGET',
            `the session of ${tokens.length} tokens does not fit into the KV memory that is free now`,
            { tokens: tokens.length },
          )
        this.#index.pin(next)
        if (under) this.#index.unpin(under)
        under = next
        at++
      }
    } finally {
      if (under) this.#index.unpin(under)
    }
    return at * PAGE_CELLS
  }

  // -----------------------------------------------------------------------------------------------------------------------

  /** Blocks in memory, parents before children: with the id of the last event, where a follower can begin. */
  snapshot(): StoredBlock[] {
    return this.#index.snapshot()
  }

  /** The pages that a session is written from or read into are only there as long as this holds. */
  #checkSame(clears: number): void {
    if (this.#closed)
      throw new KvasirError('DISPOSED', 'the engine was disposed of while a session was saved or loaded')
    if (this.#clears !== clears)
      throw new KvasirError('ABORTED', 'the cache was cleared while a session was saved or loaded')
  }

  /** Forgets everything, in memory and in the tiers. Pages that sequences use stay theirs. */
  async clear(): Promise<void> {
    this.#clears++
    for (const node of this.#index.clear()) this.#store.releasePage(node.place)
    this.#unwritten.clear()
    this.#emit({ kind: 'AllBlocksCleared' })
    for (const tier of this.#tiers) await tier.clear()
  }

  /**
   * Writes what is unwritten, and ends.
   * @param finish false: the store is freed right after the call, so no page is read any more
   */
  async close(finish = true): Promise<void> {
    if (this.#closed) return
    if (finish) while (this.#writing) await this.#writing
    this.#closed = true
    for (const tier of this.#tiers) await tier.close()
  }

  /** Throws unless all holds together; the pages that the index holds. For tests. */
  check(): BlockRef[] {
    checkPrefixIndex(this.#index)
    return this.#index.snapshot().map((b) => this.#index.get(b.hash)!.place)
  }

  #pin(sequence: KvSequence, node: Node): void {
    const before = this.#pins.get(sequence.id)
    if (before === node) return
    this.#index.pin(node)
    if (before) this.#index.unpin(before)
    this.#pins.set(sequence.id, node)
  }

  #stored(nodes: readonly Node[], medium: Medium): void {
    const first = nodes[0]
    if (!first) return
    this.#emit({
      kind: 'BlockStored',
      block_hashes: nodes.map((n) => n.hash),
      parent_block_hash: first.parent?.hash ?? null,
      token_ids: nodes.flatMap((n) => [...n.tokens]),
      block_size: PAGE_CELLS,
      lora_id: null,
      medium,
    })
  }
}

async function* pages(nodes: readonly Node[], read: (node: Node) => Uint8Array): AsyncGenerator<Uint8Array> {
  for (const node of nodes) {
    yield read(node)
    await setImmediate()
  }
}
