// Nothing but fetch: server-sent events from `kvasir serve` (npm start).
const response = await fetch(`${process.env['KVASIR_URL'] ?? 'http://127.0.0.1:8080'}/v1/chat/completions`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({
    messages: [
      { role: 'user', content: 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?' },
    ],
    temperature: 0,
    stream: true,
  }),
})
if (!response.ok) throw new Error(await response.text())

let rest = ''
for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + piece).split('\n')
  rest = lines.pop()!
  for (const line of lines) {
    if (!line.startsWith('data: ') || line === 'data: [DONE]') continue
    const { choices, error } = JSON.parse(line.slice('data: '.length))
    if (error) throw new Error(error.message)
    process.stdout.write(choices[0]?.delta.content ?? '')
  }
}
console.log()
