// LangChain.js against `kvasir serve` (npm start).
import { ChatOpenAI } from '@langchain/openai'

const model = new ChatOpenAI({
  model: 'house',
  temperature: 0,
  apiKey: 'none',
  configuration: { baseURL: `${process.env['KVASIR_URL'] ?? 'http://127.0.0.1:8080'}/v1` },
})
const stream = await model.stream([
  ['system', 'Answer in one sentence.'],
  ['user', 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'],
])
for await (const { content } of stream) process.stdout.write(String(content))
console.log()
