/**
 * The page in a real Chromium, against a real server on the house model. Without a browser these tests are skipped, and say
 * so: Debian's is `apt-get install chromium`, any other is named by $CHROMIUM.
 */

// biome-ignore-all lint/performance/useDomNodeTextContent: what is read here is what a person sees, line breaks too
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core'
import { buildPage } from '../scripts/build-page.mjs'
import type { ServerOptions } from '../src/server/options.ts'
import { startHouse } from '../src/server/server.fixture.ts'

type House = Awaited<ReturnType<typeof startHouse>>

const QUESTION = 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'
/** An answer that cannot end soon. */
const LONG_SCHEMA = '{"type": "array", "minItems": 400, "items": {"type": "integer"}}'
const MOST_BYTES = 150_000
const PHONE = { width: 360, height: 740 }

const folder = fileURLToPath(new URL('../dist/page', import.meta.url))
const executablePath = [process.env['CHROMIUM'], 'chromium', 'google-chrome', 'chromium-browser']
  .flatMap((name) =>
    name ? [spawnSync('sh', ['-c', 'command -v "$0"', name], { encoding: 'utf8' }).stdout.trim()] : [],
  )
  .find((path) => path !== '')
const skip = executablePath ? false : 'no Chromium here: install it, or name it in $CHROMIUM'

describe('the files of the page', () => {
  before(() => buildPage())

  it('are three, and small', () => {
    const files = readdirSync(folder).sort()
    assert.deepEqual(files, ['index.html', 'page.css', 'page.js'])
    const bytes = files.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0)
    assert.ok(bytes < MOST_BYTES, `${bytes} bytes`)
  })

  it('come with a strict policy, need no key, and are not sent twice', async () => {
    await using server = await startHouse({ apiKeys: ['secret'] })
    for (const path of ['/', '/page.js', '/page.css']) {
      const { status, headers } = await fetch(server.url + path)
      assert.equal(status, 200)
      assert.match(headers.get('content-security-policy')!, /^default-src 'none'; script-src 'self';/)
      assert.ok(!headers.get('content-security-policy')!.includes('unsafe'))
      assert.equal(headers.get('x-content-type-options'), 'nosniff')
      const again = await fetch(server.url + path, { headers: { 'if-none-match': headers.get('etag')! } })
      assert.equal(again.status, 304)
    }
  })

  it('are not served when the page is switched off', async () => {
    await using server = await startHouse({ page: false })
    assert.equal((await fetch(`${server.url}/page.js`)).status, 404)
  })
})

describe('the page', { skip }, () => {
  let browser: Browser
  let server: House
  before(async () => {
    await buildPage()
    server = await startHouse()
    // Root in a container has no sandbox.
    const args = process.getuid?.() === 0 ? ['--no-sandbox'] : []
    browser = await chromium.launch({ executablePath: executablePath!, args })
  })
  after(async () => {
    await browser?.close()
    await server?.close()
  })

  /** A page of its own, which must log no error and ask nobody else for anything. */
  async function visit(work: (page: Page) => Promise<void>, options: BrowserContextOptions = {}, house = server) {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options })
    const page = await context.newPage()
    page.setDefaultTimeout(20_000)
    const troubles: string[] = []
    // Refusals are tested on purpose: the browser logs each of them.
    page.on('console', (m) => {
      if (['error', 'warning'].includes(m.type()) && !/status of 4\d\d/.test(m.text())) troubles.push(m.text())
    })
    page.on('pageerror', (error) => troubles.push(String(error)))
    page.on('request', (request) => {
      if (!/^data:/.test(request.url()) && new URL(request.url()).origin !== house.url) troubles.push(request.url())
    })
    try {
      await page.goto(house.url)
      await work(page)
    } finally {
      await context.close()
    }
    assert.deepEqual(troubles, [])
  }

  const answer = (page: Page) => page.locator('.turn.assistant .text').last()
  const ask = async (page: Page, text: string) => {
    await page.locator('#message').fill(text)
    await page.locator('#message').press('Enter')
  }
  const setParameters = async (page: Page, values: Readonly<Record<string, string>>) => {
    await page.locator('.parameters summary').click()
    for (const [name, value] of Object.entries(values)) await page.locator(`#p-${name}`).fill(value)
    await page.locator('.parameters summary').click()
  }
  const picture = (page: Page) =>
    page.locator('canvas[data-free]').evaluate((canvas: HTMLElement & { toDataURL(): string }) => ({
      pixels: canvas.toDataURL(),
      free: Number(canvas.dataset['free']),
      prefix: Number(canvas.dataset['prefix']),
      private: Number(canvas.dataset['private']),
    }))
  const settled = (page: Page) => page.locator('.turn.assistant .figures:not(.waiting)').last().waitFor()

  it('answers, tells the figures of the answer, and keeps the conversation', () =>
    visit(async (page) => {
      await setParameters(page, { temperature: '0' })
      await ask(page, QUESTION)
      await settled(page)
      assert.match(await answer(page).innerText(), /rabbit/)
      assert.match(
        await page.locator('.figures').innerText(),
        /\d+ tokens\s+[\d.,]+ tokens\/s\s+first token after .+cached/s,
      )
      await page.getByRole('button', { name: 'Regenerate' }).click()
      await page.getByText('of 29 prompt tokens cached').waitFor()
      await page.waitForTimeout(700)
      await page.reload()
      assert.match(await answer(page).innerText(), /rabbit/)
      assert.equal(await page.locator('#p-temperature').inputValue(), '0')
    }))

  it('shows tokens as they arrive, stops in the middle, and the engine stops too', () =>
    visit(async (page) => {
      await setParameters(page, { schema: LONG_SCHEMA, temperature: '1' })
      await ask(page, 'Count.')
      const lengths: number[] = []
      while (lengths.length < 4) {
        const { length } = await answer(page).innerText()
        if (length > (lengths.at(-1) ?? 0)) lengths.push(length)
      }
      assert.equal((await server.engineOf().status()).running, 1)
      await page.locator('#message').press('Escape')
      await page.locator('.figures', { hasText: 'stopped' }).waitFor()
      const text = await answer(page).innerText()
      for (let i = 0; (await server.engineOf().status()).running > 0; i++) {
        assert.ok(i < 100, 'the engine goes on')
        await page.waitForTimeout(20)
      }
      await page.waitForTimeout(300)
      assert.equal(await answer(page).innerText(), text)
    }))

  it('shows the cache, the steps and the requests as they change', () =>
    visit(async (page) => {
      await page.locator('canvas[data-free]').waitFor()
      await page.waitForTimeout(300)
      const before = await picture(page)
      await setParameters(page, { schema: LONG_SCHEMA, temperature: '1' })
      await ask(page, 'The ship sailed past the harbour at dawn with its captain. '.repeat(12))
      await page.waitForFunction(() => Number(document.querySelector('canvas')!.dataset['private']) > 0)
      await page.getByText('1 running').waitFor()
      const during = await picture(page)
      assert.notEqual(during.pixels, before.pixels)
      assert.ok(during.free < before.free)
      await page.getByRole('button', { name: 'Stop' }).click()
      await page.waitForFunction(() => document.querySelector('canvas')!.dataset['private'] === '0')
      const later = await picture(page)
      assert.ok(later.prefix > before.prefix, 'what was computed is kept as a prefix')
      await page.getByText(/now: \d+ prefill and \d+ decode rows/).waitFor()
      await page
        .getByText(/median .+ 95 % within .+ seen/)
        .first()
        .waitFor()
      assert.ok((await page.locator('.timelines .bar i.decode').count()) > 0)
      assert.ok((await page.locator('.plot canvas').count()) === 4)
    }))

  it('can be used with the keyboard alone', () =>
    visit(async (page) => {
      await page.locator('canvas[data-free]').waitFor()
      const focusOn = async (selector: string) => {
        for (let i = 0; i < 40; i++) {
          await page.keyboard.press('Tab')
          const found = await page.evaluate((s) => {
            const { activeElement: active } = document
            return active?.matches(s) ? getComputedStyle(active).outlineStyle : null
          }, selector)
          if (found === null) continue
          assert.equal(found, 'solid', `the focus on ${selector} cannot be seen`)
          return
        }
        assert.fail(`${selector} cannot be reached`)
      }
      await focusOn('.new')
      await focusOn('#message')
      await page.keyboard.type('Hello')
      await page.keyboard.press('Enter')
      await settled(page)
      await focusOn('canvas')
      const facts = page.locator('.arena .facts')
      assert.match(await facts.innerText(), /^page 0: /)
      await page.keyboard.press('ArrowRight')
      assert.match(await facts.innerText(), /^page 1: /)
    }))

  it('writes texts as texts, and fences as code', () =>
    visit(async (page) => {
      await setParameters(page, { maxTokens: '1' })
      const text = '<img src=x onerror="document.title=1"><b>bold</b>\n```html\n<script>1</script>\n```\n  two  spaces'
      await page.locator('#message').fill(text)
      await page.getByRole('button', { name: 'Send' }).click()
      await settled(page)
      const user = page.locator('.turn.user .text')
      assert.equal(await user.locator('img, b, script').count(), 0)
      assert.equal(await user.locator('pre').innerText(), '<script>1</script>')
      assert.match(await user.innerText(), / {2}two {2}spaces/)
      assert.equal(await page.title(), 'Kvasir')
    }))

  it('says what is wrong and what can be done', () =>
    visit(async (page) => {
      await setParameters(page, { temperature: '9' })
      await page.locator('#message').fill('Hello')
      assert.ok(await page.getByRole('button', { name: 'Send' }).isDisabled())
      await page.getByText('Mend the parameter “Temperature” first.').waitFor()
      await setParameters(page, { temperature: '', schema: '{"type": "nothing"}' })
      await page.locator('#message').press('Enter')
      const alert = page.getByRole('alert')
      await alert.getByText('Change the parameters or the message, then try again.').waitFor()
      assert.match(await alert.innerText(), /nothing/)
      await setParameters(page, { schema: '' })
      await alert.getByRole('button', { name: 'Try again' }).click()
      await settled(page)
      await ask(page, 'word '.repeat(5000))
      await alert.getByText('Start a new conversation, or lower max tokens.').waitFor()
    }))

  it('keeps several conversations: new, renamed, deleted, edited', () =>
    visit(async (page) => {
      await setParameters(page, { maxTokens: '3' })
      await ask(page, 'The first one')
      await settled(page)
      await page.getByRole('button', { name: 'New conversation' }).click()
      await ask(page, 'The second one')
      await settled(page)
      const titles = page.locator('.conversations .title')
      assert.deepEqual(await titles.allInnerTexts(), ['The second one', 'The first one'])
      await page.getByRole('button', { name: 'Edit' }).click()
      await page.locator('.edit textarea').fill('Another one')
      await page.getByRole('button', { name: 'Answer again' }).click()
      await settled(page)
      assert.equal(await page.locator('.turn').count(), 2)
      assert.equal(await page.locator('.turn.user .text').innerText(), 'Another one')
      await page.getByRole('button', { name: 'Rename The second one' }).click()
      await page.getByLabel('Title').fill('Renamed')
      await page.keyboard.press('Enter')
      page.on('dialog', (dialog) => void dialog.accept())
      await page.getByRole('button', { name: 'Delete Renamed' }).click()
      assert.deepEqual(await titles.allInnerTexts(), ['The first one'])
      assert.equal(await page.locator('.turn.user .text').innerText(), 'The first one')
    }))

  it('asks for a key, and keeps it for the tab alone', async () => {
    const options: Partial<ServerOptions> = { apiKeys: ['secret'] }
    await using locked = await startHouse(options)
    await visit(
      async (page) => {
        await page.getByText('This server asks for an API key.').waitFor()
        await page.locator('#key').fill('wrong')
        await page.keyboard.press('Enter')
        await page.getByText('This server does not know that API key.').waitFor()
        await page.locator('#key').fill('secret')
        await page.keyboard.press('Enter')
        await page.locator('canvas[data-free]').waitFor()
        await ask(page, QUESTION)
        await settled(page)
        assert.ok(!(await page.evaluate(() => JSON.stringify(localStorage))).includes('secret'))
      },
      {},
      locked,
    )
  })

  it('fits a phone', () =>
    visit(
      async (page) => {
        const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)
        await ask(page, QUESTION)
        await settled(page)
        assert.ok(await fits())
        assert.ok(!(await page.locator('#live').isVisible()))
        await page.getByRole('button', { name: 'Engine' }).click()
        await page.locator('canvas[data-free]').waitFor()
        assert.ok(!(await page.locator('#playground').isVisible()))
        assert.ok(await fits())
        const inside = await page.locator('#live').evaluate((e) => e.scrollWidth <= e.clientWidth)
        assert.ok(inside, 'the engine view scrolls sideways')
      },
      { viewport: PHONE, deviceScaleFactor: 2, hasTouch: true },
    ))

  it('is dark or light as the system is, or as one chooses', async () => {
    const paper = (page: Page) => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor)
    const seen: string[] = []
    for (const colorScheme of ['light', 'dark'] as const)
      await visit(async (page) => void seen.push(await paper(page)), { colorScheme })
    assert.notEqual(seen[0], seen[1])
    await visit(
      async (page) => {
        await page.getByLabel('Theme').selectOption('dark')
        assert.equal(await paper(page), seen[1])
        await page.reload()
        assert.equal(await paper(page), seen[1])
      },
      { colorScheme: 'light' },
    )
  })

  it('can be paused', () =>
    visit(async (page) => {
      await page.locator('.connection.live').waitFor()
      await page.getByRole('button', { name: 'Pause' }).click()
      await page.locator('.connection.paused').waitFor()
      await page.getByRole('button', { name: 'Resume' }).click()
      await page.locator('.connection.live').waitFor()
    }))
})
