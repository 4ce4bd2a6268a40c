/**
 * A program that loads an engine, prints the id of its process, and does not dispose of it.
 * Arguments: `idle`, `answer` (one whole answer), `running` (in the middle of one), `hang` (in a stuck native call).
 */
import { EngineClient } from './client.ts'
import { MODULE, model, script } from './fake-engine.fixture.ts'

const engine = await EngineClient.loadWith(MODULE, model())
engine.onEvent(() => {})
const how = process.argv[2]
if (how === 'answer') for await (const _ of engine.generate(script({}))) void _
console.log(engine.pid)
if (how === 'hang') await engine.generate(script({ fault: 'hang' })).next()
if (how === 'running') for await (const _ of engine.generate(script({ tokens: null, delayMs: 5 }))) void _
