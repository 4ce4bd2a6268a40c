/** The page in a real browser, against a real server on the house model. Skipped, with a word, where there is no browser. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core'
import { buildPage } from '../scripts/build-page.mjs'
import { startHouse } from '../src/server/server.fixture.ts'
import { packageRoot } from '../src/version.ts'

const BROWSERS = [process.env['CHROMIUM'], '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']
const executablePath = BROWSERS.find((path) => path && existsSync(path))
/** Where pictures of the page go, for people to look at; nowhere by default. */
const SHOTS = process.env['KVASIR_SHOTS']
const QUESTION = 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'
const WIDE = { width: 1440, height: 1000 }
const PHONE = { width: 360, height: 740 }

describe('the page', {
  skip: executablePath ? false : 'no Chromium was found: install it, or name it in CHROMIUM',
}, () => {
  let server: Awaited<ReturnType<typeof startHouse>>
  let browser: Browser

  before(async () => {
    await buildPage()
    server = await startHouse()
    browser = await chromium.launch({ executablePath: executablePath!, args: ['--no-sandbox', '--disable-gpu'] })
  })
  after(async () => {
    await browser?.close()
    await server?.close()
  })

  interface Visit {
    readonly page: Page
    readonly context: BrowserContext
    /** Errors on the console, and requests that left the server. */
    readonly troubles: string[]
  }

  async function visit(url = server.url, options: Parameters<Browser['newContext']>[0] = {}): Promise<Visit> {
    const context = await browser.newContext({ viewport: WIDE, reducedMotion: 'reduce', ...options })
    const page = await context.newPage()
    const troubles: string[] = []
    page.on('console', (m) => m.type() === 'error' && troubles.push(m.text()))
    page.on('pageerror', (e) => troubles.push(String(e)))
    page.on('request', (r) => r.url().startsWith(url) || r.url().startsWith('data:') || troubles.push(r.url()))
    await page.goto(url)
    return { page, context, troubles }
  }

  const shot = async (page: Page, name: string) => {
    if (!SHOTS) return
    mkdirSync(SHOTS, { recursive: true })
    await page.screenshot({ path: join(SHOTS, `${name}.png`) })
  }
  const transcript = (page: Page) => page.getByRole('log')
  const runningNow = async () => (await server.engineOf().status()).running
  const until = async (what: string, done: () => Promise<boolean>) => {
    for (let i = 0; i < 400; i++) {
      if (await done()) return
      await sleep(25)
    }
    assert.fail(`${what} did not come true in 10 s`)
  }
  /** The model's answers are short: long ones are asked for on the way to the server. */
  const withoutEnd = (page: Page) =>
    page.route('**/v1/chat/completions', (route) => {
      const body = { ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 1500 }
      return route.continue({ postData: JSON.stringify(body) })
    })

  it('answers a message, and shows where the time went', async () => {
    const { page, context, troubles } = await visit()
    await page.getByLabel('Message').fill(QUESTION)
    await page.getByRole('button', { name: 'Send' }).click()
    await transcript(page).getByText('rabbit', { exact: false }).nth(1).waitFor()
    await transcript(page)
      .getByText(/tokens\/s/)
      .waitFor()
    await transcript(page)
      .getByText(/first token after/)
      .waitFor()
    await page.getByText('live', { exact: true }).waitFor()
    await shot(page, 'wide')
    // It is still there after a reload: conversations are kept in the browser.
    await page.reload()
    await transcript(page).getByText('rabbit', { exact: false }).nth(1).waitFor()
    assert.deepEqual(troubles, [])
    await context.close()
  })

  it('shows tokens as they come, stops in the middle, and pictures the cache', async () => {
    const { page, context, troubles } = await visit()
    await withoutEnd(page)
    const canvas = page.getByRole('img', { name: /Pages of the cache/ })
    await canvas.waitFor()
    const freeBefore = Number(await canvas.getAttribute('data-free'))
    const pixels = () => canvas.evaluate((c) => (c as unknown as { toDataURL(): string }).toDataURL())
    const before = await pixels()
    await page.getByLabel('Message').fill('Tell me about the lake.')
    await page.keyboard.press('Enter')
    const lengths: number[] = []
    while (lengths.length < 6) {
      lengths.push((await transcript(page).textContent())!.length)
      await sleep(150)
    }
    assert.ok(new Set(lengths).size >= 3 && lengths.at(-1)! > lengths[0]!, `the text had ${lengths} characters`)
    await until('a page that a request holds', async () => Number(await canvas.getAttribute('data-private')) > 0)
    await until('fewer free pages', async () => Number(await canvas.getAttribute('data-free')) < freeBefore)
    assert.notEqual(await pixels(), before, 'the picture is the same')
    await page
      .getByRole('region', { name: 'Engine' })
      .getByText(/decode/)
      .first()
      .waitFor()
    await shot(page, 'running')
    assert.equal(await runningNow(), 1)
    await page.getByRole('button', { name: 'Stop' }).click()
    await until('nothing running', async () => (await runningNow()) === 0)
    await page.getByRole('button', { name: 'Send' }).waitFor()
    assert.deepEqual(troubles, [])
    await context.close()
  })

  it('can be used with the keyboard alone', async () => {
    const { page, context } = await visit()
    await withoutEnd(page)
    const focused = () => page.evaluate('document.activeElement?.id || document.activeElement?.textContent || ""')
    for (let i = 0; i < 40 && (await focused()) !== 'message'; i++) await page.keyboard.press('Tab')
    assert.equal(await focused(), 'message')
    await page.keyboard.type('A first line')
    await page.keyboard.press('Shift+Enter')
    await page.keyboard.type('and a second')
    await page.keyboard.press('Enter')
    await until('an answer under way', async () => (await runningNow()) === 1)
    await page.keyboard.press('Escape')
    await until('nothing running', async () => (await runningNow()) === 0)
    assert.match((await transcript(page).textContent())!, /A first line\s+and a second/)
    await context.close()
  })

  it('fits a phone, dark and light', async () => {
    for (const colorScheme of ['dark', 'light'] as const) {
      const { page, context, troubles } = await visit(server.url, { viewport: PHONE, colorScheme, hasTouch: true })
      await page.getByLabel('Message').fill(QUESTION)
      await page.getByRole('button', { name: 'Send' }).tap()
      await transcript(page)
        .getByText(/tokens\/s/)
        .waitFor()
      await shot(page, `phone-${colorScheme}`)
      const overflow = () =>
        page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
      assert.equal(await overflow(), 0, 'the playground is wider than the phone')
      await page.getByRole('button', { name: 'Engine' }).tap()
      await page.getByRole('img', { name: /Pages of the cache/ }).waitFor()
      assert.equal(await overflow(), 0, 'the engine view is wider than the phone')
      await shot(page, `phone-${colorScheme}-engine`)
      const background = (await page.evaluate('getComputedStyle(document.documentElement).backgroundColor')) as string
      const [red] = background.match(/\d+/g)!.map(Number)
      assert.ok(colorScheme === 'dark' ? red! < 80 : red! > 200, `${colorScheme} has the background ${background}`)
      assert.deepEqual(troubles, [])
      await context.close()
    }
  })

  it('says what the server refuses, and writes text as text', async () => {
    const { page, context } = await visit()
    await page.getByLabel('Message').fill(`<img src=x onerror="document.title='owned'"> ${'word '.repeat(3000)}`)
    await page.keyboard.press('Enter')
    await transcript(page)
      .getByText(/tokens, and the context holds/)
      .waitFor()
    assert.notEqual(await page.title(), 'owned')
    assert.equal(await transcript(page).locator('img').count(), 0)
    await context.close()
  })

  it('asks for an API key where the server does', async () => {
    await using closed = await startHouse({ apiKeys: ['sesame'] })
    const { page, context } = await visit(closed.url)
    await page.getByLabel(/API key/).fill('wrong')
    await page.getByRole('button', { name: 'Use it' }).click()
    await page.getByText('does not know that API key', { exact: false }).waitFor()
    await page.getByLabel(/API key/).fill('sesame')
    await page.getByRole('button', { name: 'Use it' }).click()
    await page.getByText('live', { exact: true }).waitFor()
    await page.getByLabel('Message').fill(QUESTION)
    await page.keyboard.press('Enter')
    await transcript(page)
      .getByText(/tokens\/s/)
      .waitFor()
    await context.close()
  })

  it('is served with what keeps strangers out', async () => {
    const response = await fetch(server.url)
    assert.match(response.headers.get('content-security-policy')!, /default-src 'none'/)
    assert.equal(response.headers.get('x-content-type-options'), 'nosniff')
    const again = await fetch(server.url, { headers: { 'if-none-match': response.headers.get('etag')! } })
    assert.equal(again.status, 304)
    assert.ok(existsSync(join(packageRoot(), 'dist', 'page', 'page.js')))
  })
})
