/** The page in a real Chromium: it loads bundles, streams, obeys the slider and says what went wrong. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { pageServer } from "../page/serve.js";
import { missingBrowser, openBrowser } from "./browser.js";

const golden = process.env.SOL_RT_GOLDEN ?? fileURLToPath(new URL("../../../runtime_tests/golden", import.meta.url));
const bundle = `${golden}/tiny`;
const skip = (await missingBrowser()) || (existsSync(bundle) ? false : "runtime_tests/golden is not there");

test("the server keeps the query of its first page", async () => {
  const server = pageServer({});
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const url = `http://localhost:${/** @type {any} */ (server.address()).port}`;
  const locations = ["/", "/?bundle=/bundles/tiny"].map((path) => fetch(url + path, { redirect: "manual" }).then((answer) => answer.headers.get("location")));
  assert.deepEqual(await Promise.all(locations), ["/page/", "/page/?bundle=/bundles/tiny"]);
  await new Promise((resolve) => server.close(resolve));
});

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

  await t.test("shows the answer to a long question", async () => {
    await page.fill("#prompt", "the cat smiled. ".repeat(60));
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".answer:last-child span").length > 2, null, { timeout: 60_000 });
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("#send")?.textContent === "Send", null, { timeout: 60_000 });
    const below = await page.evaluate(() => {
      const end = /** @type {Element} */ (document.querySelector(".answer:last-child")).getBoundingClientRect().bottom;
      return end - /** @type {Element} */ (document.querySelector("#panel")).getBoundingClientRect().top;
    });
    assert.ok(below <= 0, `the answer ends ${below} pixels below the dial's edge`);
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

  await t.test("does not load a bundle of another host by a link", async () => {
    /** @type {string[]} */
    const asked = [];
    const other = await opened.browser.newPage();
    other.on("request", (request) => asked.push(request.url()));
    await other.goto(`${opened.url}/?bundle=${encodeURIComponent("http://127.0.0.1:9/bundles/tiny")}`);
    await other.waitForFunction(() => document.querySelector("#state")?.textContent !== "");
    assert.equal(await other.textContent("#state"), "This link names a bundle of 127.0.0.1:9. Press Load if you trust it.");
    assert.equal(await other.inputValue("#url"), "http://127.0.0.1:9/bundles/tiny");
    assert.deepEqual(asked.filter((url) => !url.startsWith(opened.url)), []);
    await other.selectOption("#provider", "wasm");
    await other.click("#by-url button");
    await other.waitForSelector("#state.error");
    assert.deepEqual(asked.filter((url) => !url.startsWith(opened.url)), ["http://127.0.0.1:9/bundles/tiny/sol_config.json"]);
    await other.close();
  });

  await t.test("loads where the browser has no room to keep anything", async () => {
    const tools = await page.context().newCDPSession(page);
    await page.evaluate(async () => {
      for (const name of await caches.keys()) await caches.delete(name);
    });
    await tools.send("Storage.overrideQuotaForOrigin", { origin: opened.url, quotaSize: 1 });
    await page.reload();
    await page.waitForSelector("#panel:not([hidden]), #state.error", { timeout: 60_000 });
    assert.equal(await page.textContent("#state"), "");
    assert.equal(await page.evaluate(async () => (await (await caches.open("sol_rt.bundles")).keys()).length), 0);
  });

  await t.test("ends a load when another one begins", async () => {
    const context = await opened.browser.newContext({ serviceWorkers: "block" });
    const other = await context.newPage();
    await other.route("**/bundles/slow/**", () => undefined); // which gets no answer
    await other.goto(`${opened.url}/page/`);
    await other.selectOption("#provider", "wasm");
    const dropped = other.waitForEvent("requestfailed", { predicate: (request) => request.url().includes("/slow/") });
    await other.fill("#url", "/bundles/slow");
    await other.click("#by-url button");
    await other.fill("#url", "/bundles/tiny");
    await other.click("#by-url button");
    await dropped;
    await other.waitForSelector("#panel:not([hidden])", { timeout: 60_000 });
    assert.equal(await other.textContent("#state"), "");
    await context.close();
  });

  await t.test("is served on after a file that cannot be read", async () => {
    const folder = await mkdtemp(join(tmpdir(), "sol-rt-web-"));
    await symlink("/proc/self/mem", join(folder, "memory")); // a file by its kind, whose first byte gives an error
    const server = pageServer({ odd: folder });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
    const url = `http://localhost:${/** @type {any} */ (server.address()).port}`;
    for (let i = 0; i < 3; i += 1) await fetch(`${url}/bundles/odd/memory`).then((answer) => answer.text()).catch(() => "");
    assert.equal((await fetch(`${url}/page/`)).status, 200);
    server.close();
    await rm(folder, { recursive: true });
  });
  assert.deepEqual(errors, []);
});
