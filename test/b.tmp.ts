import { batch } from '../bench/batch.ts'
const [shape, ctx, seqs] = process.argv.slice(2)
await batch({ shape: shape!, contexts: ctx!.split(',').map(Number), sequences: seqs!.split(',').map(Number), rounds: 5, onRow: (r) => console.log(JSON.stringify(r)) })
