/** The page in a real Chromium: it loads bundles, streams, obeys the slider and says what went wrong. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { missingBrowser, openBrowser } from "./browser.js";

const golden = process.env.SOL_RT_GOLDEN ?? fileURLToPath(new URL("../../../runtime_tests/golden", import.meta.url));
const bundle = `${golden}/tiny`;
const skip = (await missingBrowser()) || (existsSync(bundle) ? false : "runtime_tests/golden is not there");

test("the page", { skip }, async (t) => {
  const opened = await openBrowser({ tiny: bundle });
  t.after(() => opened.close());
  const page = await opened.browser.newPage({ viewport: { width: 390, height: 844 } });
  /** @type {string[]} */
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));

  await t.test("says what is wrong with a URL", async () => {
    await page.goto(`${opened.url}/page/`);
    await page.selectOption("#provider", "wasm");
    await page.fill("#url", "/bundles/nothing");
    await page.click("#by-url button");
    await page.waitForSelector("#state.error");
    assert.match((await page.textContent("#state")) ?? "", /sol_config\.json: got HTTP status 404, expected a file/);
  });

  await t.test("loads by URL and streams, and the slider acts meanwhile", async () => {
    await page.fill("#url", "/bundles/tiny");
    await page.click("#by-url button");
    await page.waitForSelector("#panel:not([hidden])", { timeout: 60_000 });
    await page.fill("#budget", "100");
    await page.fill("#prompt", "One day");
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".answer span").length > 5, null, { timeout: 60_000 });
    await page.fill("#budget", "0"); // the floor
    await page.waitForFunction(
      () => document.querySelector("#send")?.textContent === "Send" && document.querySelector(".answer span"),
      null, { timeout: 120_000 },
    );
    const titles = await page.$$eval(".answer span", (spans) => spans.map((span) => /** @type {any} */ (span).title));
    assert.ok(titles.slice(0, 5).every((title) => title.startsWith("k100-s100-q8, cost 100%")), titles[3]);
    const last = titles[titles.length - 1];
    assert.doesNotMatch(last, /cost 100%/);
    assert.notEqual(await page.textContent("#achieved"), "100%");
  });

  await t.test("stops when it is told to", async () => {
    await page.fill("#prompt", "Another one");
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".answer:last-child span").length > 2, null, { timeout: 60_000 });
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("#send")?.textContent === "Send", null, { timeout: 60_000 });
    assert.equal(await page.$(".error"), null);
  });

  await t.test("loads a chosen folder", async () => {
    await page.click("#change");
    await page.setInputFiles("#folder", bundle);
    await page.waitForFunction(() => document.querySelector("#model")?.textContent?.startsWith("golden-tiny on"), null, { timeout: 60_000 });
    await page.waitForSelector("#panel:not([hidden])", { timeout: 60_000 });
  });

  await t.test("takes a bundle from the service worker's cache the second time", async () => {
    await page.goto(`${opened.url}/page/?bundle=/bundles/tiny`);
    await page.waitForSelector("#panel:not([hidden])", { timeout: 60_000 });
    opened.asked.length = 0;
    await page.reload();
    await page.waitForSelector("#panel:not([hidden])", { timeout: 60_000 });
    assert.deepEqual(opened.asked.filter((path) => path.startsWith("/bundles/")), ["/bundles/tiny/sol_config.json"]);
  });
  assert.deepEqual(errors, []);
});
