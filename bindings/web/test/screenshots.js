/** Takes the screenshots of the docs: `node test/screenshots.js BUNDLE FOLDER`. */
import { openBrowser } from "./browser.js";

const [bundle, folder] = process.argv.slice(2);
const opened = await openBrowser({ model: bundle });
const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1100, height: 760 } };
for (const [name, viewport] of Object.entries(SIZES)) {
  for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
    const page = await opened.browser.newPage({ viewport, colorScheme });
    await page.goto(`${opened.url}/page/`);
    await page.selectOption("#provider", "wasm");
    if (name === "phone" && colorScheme === "light") await page.screenshot({ path: `${folder}/web-open.png` });
    await page.fill("#url", "/bundles/model");
    await page.click("#by-url button");
    await page.waitForSelector("#panel:not([hidden])", { timeout: 120_000 });
    await page.fill("#budget", "60");
    await page.fill("#prompt", "Name three rivers in Europe, with a sentence about each.");
    await page.press("#prompt", "Enter");
    const count = (/** @type {number} */ n) =>
      page.waitForFunction((least) => {
        const done = document.querySelector("#send")?.textContent === "Send";
        return done || document.querySelectorAll(".answer span").length >= least;
      }, n, { timeout: 400_000 });
    await count(40);
    await page.fill("#budget", "90");
    await count(80);
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("#send")?.textContent === "Send");
    await page.screenshot({ path: `${folder}/web-${name}-${colorScheme}.png` });
    await page.close();
  }
}
await opened.close();
