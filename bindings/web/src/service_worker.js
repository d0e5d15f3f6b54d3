/**
 * A service worker that keeps bundles: a file that was loaded once comes from the browser's cache, also without network.
 *
 * Register it at a scope that covers the bundles. The library asks for files by name and hash (`weights.bin?sha256=…`), so
 * what is kept never grows stale, and a new bundle in the place of an old one is loaded anew.
 */
const CACHE = "sol_rt.bundles";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET") return;
  if (url.searchParams.has("sha256")) event.respondWith(kept(event, url));
  else if (url.pathname.endsWith("/sol_config.json")) event.respondWith(newest(request));
});

/** A file named by its hash: from the cache, else from the network into the cache. */
async function kept(event, url) {
  const cache = await caches.open(CACHE);
  const found = await cache.match(event.request);
  if (found !== undefined) return found;
  const response = await fetch(event.request);
  if (response.ok) event.waitUntil(store(cache, event.request, response.clone(), url));
  return response;
}

/** The config: from the network, and without one from the cache. */
async function newest(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone()).catch(() => undefined); // a full disk keeps nothing
    return response;
  } catch (error) {
    const found = await cache.match(request);
    if (found !== undefined) return found;
    throw error;
  }
}

/** Keeps a file and drops other content of the same name. A full disk keeps nothing, and the page goes on. */
async function store(cache, request, response, url) {
  for (const key of await cache.keys()) {
    const old = new URL(key.url);
    if (old.origin + old.pathname === url.origin + url.pathname) await cache.delete(key);
  }
  await cache.put(request, response).catch(() => undefined);
}
