/**
 * Stacks: weights that are multiplied with the same rows (q, k and v; gate and up) become one tensor, row behind row. One
 * product then does the work of several, each of which would quantise its input again and let all threads wait twice: worth a
 * tenth of a small model's decode step. Every row's product is the same as before, bit for bit.
 */
import { hostBufferType } from '../../ggml/buffer.ts'
import type { Four } from '../../ggml/tensor.ts'
import { STACKS } from '../architecture.ts'
import type { PlaceChooser, PlacedWeight } from './place.ts'

/**
 * A stack of weights that would be used from the mapped file has to be a copy of them. Up to this many bytes of copies a
 * model is worth it; in larger ones a product takes so long that joining it with others gains nothing to speak of.
 */
const MOST_COPIED_BYTES = 2 * 2 ** 30

export function stackWeights(layers: readonly (readonly PlacedWeight[])[], chooser: PlaceChooser): PlacedWeight[] {
  const stacked = layers.map((weights) => stackLayer(weights, chooser))
  const copied = stacked.flat().filter((p) => p.parts.length > 1 && isCopy(p))
  const bytes = copied.reduce((sum, p) => sum + p.bytes, 0)
  return bytes <= MOST_COPIED_BYTES ? stacked.flat() : layers.flat()
}

/** Packing types and devices hold copies anyway. */
function isCopy(p: PlacedWeight): boolean {
  return p.place !== 'mapped file' && p.place.isHost && !p.place.isPacking
}

function stackLayer(weights: readonly PlacedWeight[], chooser: PlaceChooser): PlacedWeight[] {
  const byKey = new Map(weights.map((p) => [p.key, p]))
  const biases = STACKS.qkvBias.filter((key) => byKey.has(key)).length
  for (const [name, keys] of Object.entries(STACKS)) {
    // q, k and v with biases for some of them only stay apart.
    if (name !== 'gateUp' && biases % STACKS.qkvBias.length) continue
    const stack = join(
      name,
      keys.map((key) => byKey.get(key)),
      chooser,
    )
    if (!stack) continue
    for (const key of keys) byKey.delete(key)
    byKey.set(name, stack)
  }
  return [...byKey.values()]
}

function join(key: string, weights: readonly (PlacedWeight | undefined)[], chooser: PlaceChooser): PlacedWeight | null {
  const [first] = weights
  if (!first) return null
  const tensors = weights.map((p) => p?.parts[0])
  const [head] = tensors
  const fits = tensors.every((t) => t && t.type === head!.type && (first.role === 'vector' || t.ne[0] === head!.ne[0]))
  if (!fits) return null
  const parts = tensors.filter((t) => t !== undefined)
  const along = first.role === 'vector' ? 0 : 1
  const ne: Four = [...head!.ne]
  const sizes: [number, number, number, number] = [...ne]
  sizes[along] = parts.reduce((sum, t) => sum + t.ne[along], 0)
  const { place, bytes } = chooser.choose(head!.type, sizes, first.role)
  return {
    key,
    layer: first.layer,
    role: first.role,
    parts,
    bytes,
    place: place === 'mapped file' ? hostBufferType() : place,
  }
}
