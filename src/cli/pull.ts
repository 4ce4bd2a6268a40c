/** `kvasir pull`: fetches a model from the Hugging Face hub, once. */
import { type Command, Option } from 'commander'
import { KvasirError } from '../contract/errors.ts'
import { isHubName, parseHubName } from './hub/name.ts'
import { pull } from './hub/pull.ts'
import { interruptible } from './interrupt.ts'
import { addOptions, jsonOption } from './options.ts'
import { downloadBar, noProgress } from './progress.ts'

interface Flags {
  readonly json?: true
  readonly quiet?: true
}

export const pullOptions = (): Option[] => [
  jsonOption('print one JSON object: repo, file, path, bytes, parts, downloaded_bytes'),
  new Option('-q, --quiet', 'print nothing but the path, and errors'),
]

export function addPull(program: Command): void {
  const command = program
    .command('pull')
    .description('fetch a GGUF model from the Hugging Face hub; an interrupted download goes on where it ended')
    .argument('<model>', 'hf:OWNER/REPO[:FILE]; FILE may be a quantisation such as Q8_0 (default: Q4_K_M, else Q8_0)')
    .addHelpText(
      'after',
      '\nModels go to $KVASIR_CACHE/models, by default ~/.cache/kvasir/models. HF_TOKEN is used for private and gated\n' +
        'models, HF_ENDPOINT for mirrors of the hub.',
    )
    .action(run)
  addOptions(command, pullOptions())
}

async function run(model: string, { json, quiet }: Flags): Promise<void> {
  if (!isHubName(model))
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `"${model}" is no model of the hub: that is written hf:OWNER/REPO[:FILE]`,
      {
        model,
      },
    )
  const name = parseHubName(model)
  const say = quiet ? () => {} : (text: string) => void process.stderr.write(`${text}\n`)
  const progress = quiet ? () => noProgress : downloadBar
  const pulled = await interruptible((signal) => pull(name, { signal, say, progress }))
  process.stdout.write(json ? `${JSON.stringify(pulled)}\n` : `${pulled.path}\n`)
}
