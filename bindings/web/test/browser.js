/** A headless Chromium and a server of the page, for the tests; null with a reason where they can't be had. */
import { existsSync } from "node:fs";

import { pageServer } from "../page/serve.js";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/** Explains why there is no browser; empty if there is one. */
export async function missingBrowser() {
  if (executable() === undefined) return "no chromium (apt-get install chromium)";
  return await import("playwright-core").then(() => "", () => "no playwright-core (npm install)");
}

function executable() {
  return [process.env.CHROMIUM ?? "", ...PLACES].find((path) => existsSync(path));
}

/**
 * Opens a browser and a server of `bundles`, folders by name.
 * @param {Record<string, string>} bundles
 */
export async function openBrowser(bundles) {
  const { chromium } = await import("playwright-core");
  /** @type {string[]} */
  const asked = [];
  const server = pageServer(bundles, (path) => asked.push(path));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const address = server.address();
  const port = address !== null && typeof address === "object" ? address.port : 0;
  const browser = await chromium.launch({ executablePath: executable(), args: FLAGS });
  return {
    asked,
    browser,
    url: `http://localhost:${port}`,
    async close() {
      await browser.close();
      server.close();
    },
  };
}
