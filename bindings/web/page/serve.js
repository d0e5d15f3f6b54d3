/**
 * Serves the page and bundles from this machine: `node page/serve.js [PORT] [NAME=FOLDER …]`.
 *
 * It sends the two headers that make the page cross-origin isolated, which threads of wasm need.
 */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { pipeline } from "node:stream";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const SERVED = ["page", "src", "core", "test", "bench", "node_modules"];
/** @type {Record<string, string>} */
const TYPES = {
  ".css": "text/css", ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".json": "application/json",
  ".mjs": "text/javascript", ".wasm": "application/wasm", ".svg": "image/svg+xml",
};

/**
 * A server of the page, and of bundles below `/bundles/NAME/`.
 * @param {Record<string, string>} bundles folders by name
 * @param {(path: string) => void} [onRequest] called with every requested path
 */
export function pageServer(bundles, onRequest) {
  return createServer(async (request, response) => {
    const path = pathOf(request.url ?? "/");
    if (path === null) {
      response.writeHead(400, { "Content-Type": "text/plain" }).end("no such address\n");
      return;
    }
    onRequest?.(path);
    if (path === "/") {
      const { search } = new URL(request.url ?? "/", "http://localhost");
      response.writeHead(302, { Location: `/page/${search}` }).end();
      return;
    }
    if (path === "/bundles.json") {
      response.writeHead(200, { "Content-Type": TYPES[".json"] }).end(JSON.stringify(Object.keys(bundles)));
      return;
    }
    const file = place(path.endsWith("/") ? `${path}index.html` : path, bundles);
    const found = file === null ? null : await stat(file).catch(() => null);
    if (file === null || found === null || !found.isFile()) {
      response.writeHead(404, { "Content-Type": "text/plain" }).end("no such file\n");
      return;
    }
    response.writeHead(200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Content-Length": found.size,
      "Cache-Control": "no-cache",
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
      "Service-Worker-Allowed": "/",
    });
    pipeline(createReadStream(file), response, () => undefined); // who asked sees that the answer breaks off
  });
}

/**
 * The decoded path of a request; null if it is malformed.
 * @param {string} url
 */
function pathOf(url) {
  try {
    return decodeURIComponent(new URL(url, "http://localhost").pathname);
  } catch {
    return null;
  }
}

/**
 * @param {string} path
 * @param {Record<string, string>} bundles
 */
function place(path, bundles) {
  const [, top, ...rest] = normalize(path).split("/");
  if (rest.includes("..")) return null;
  if (top === "bundles") return !Object.hasOwn(bundles, rest[0] ?? "") ? null : join(bundles[rest[0]], ...rest.slice(1));
  return SERVED.includes(top) ? join(ROOT, top, ...rest) : null;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [port = "8080", ...named] = process.argv.slice(2);
  const pairs = named.map((pair) => pair.split(/=(.*)/s).slice(0, 2));
  if (!/^\d+$/.test(port) || pairs.some(([name, folder]) => !name || !folder)) {
    console.error("usage: node page/serve.js [PORT] [NAME=FOLDER …]");
    process.exit(2);
  }
  const server = pageServer(Object.fromEntries(pairs));
  server.on("error", (error) => {
    console.error(`error: port ${port}: ${error.message}; give another one`);
    process.exit(1);
  });
  server.listen(Number(port), "127.0.0.1", () => console.log(`http://localhost:${port}/`));
}
