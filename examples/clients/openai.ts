// OpenAI's own client against `kvasir serve` (npm start). KVASIR_URL: where the server is.
import OpenAI from 'openai'

const openai = new OpenAI({
  baseURL: `${process.env['KVASIR_URL'] ?? 'http://127.0.0.1:8080'}/v1`,
  apiKey: process.env['KVASIR_API_KEY'] ?? 'none',
})
const question = 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'

const stream = await openai.chat.completions.create({
  model: 'house',
  messages: [{ role: 'user', content: question }],
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
})
for await (const { choices, usage } of stream) {
  process.stdout.write(choices[0]?.delta.content ?? '')
  if (usage) console.log(`\n${usage.prompt_tokens} prompt tokens, ${usage.completion_tokens} generated`)
}

const { choices } = await openai.chat.completions.create({
  model: 'house',
  messages: [{ role: 'user', content: question }],
  tool_choice: 'required',
  parallel_tool_calls: false,
  tools: [
    {
      type: 'function',
      function: {
        name: 'feed',
        description: 'Feeds an animal',
        parameters: {
          type: 'object',
          properties: { animal: { enum: ['cat', 'dog', 'rabbit'] } },
          required: ['animal'],
          additionalProperties: false,
        },
      },
    },
  ],
})
const call = choices[0]?.message.tool_calls?.[0]
if (call?.type === 'function') console.log(`call: ${call.function.name}(${call.function.arguments})`)
