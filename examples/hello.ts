import { Engine } from '../src/index.ts'

using engine = await Engine.load('house') // or a path to a GGUF file
const messages = [
  { role: 'user', content: 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?' },
]
for await (const part of engine.generate({ messages, sampling: { temperature: 0 } })) {
  process.stdout.write(part.text)
  if (part.kind === 'end') console.log(part.reason, part.timings)
}
