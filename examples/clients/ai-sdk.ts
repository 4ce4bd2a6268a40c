// The AI SDK against `kvasir serve` (npm start), through its provider for OpenAI-compatible servers.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, streamText } from 'ai'
import { z } from 'zod'

const kvasir = createOpenAICompatible({
  name: 'kvasir',
  baseURL: `${process.env['KVASIR_URL'] ?? 'http://127.0.0.1:8080'}/v1`,
  supportsStructuredOutputs: true,
})
const prompt = 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'

const { textStream } = streamText({ model: kvasir('house'), prompt, temperature: 0 })
for await (const text of textStream) process.stdout.write(text)
console.log()

const { object } = await generateObject({
  model: kvasir('house'),
  prompt,
  temperature: 0,
  schema: z.object({ animal: z.enum(['cat', 'dog', 'rabbit']) }),
})
console.log('object:', object)
