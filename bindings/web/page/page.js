/** The page: opens a bundle, streams answers whose tokens are shaded by cost, and lets the slider act meanwhile. */
import { SolError, SolModel } from "sol-rt";

const find = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)}%`;

/** State of the page: the load, the model, the messages so far, and the running stream with its AbortController. */
const state = { loading: null, model: null, messages: [], chats: false, floor: 0, stream: null, abort: null };

if ("serviceWorker" in navigator) {
  // what keeps bundles for the next visit; the page works without it
  navigator.serviceWorker.register("/src/service_worker.js", { scope: "/" }).catch(() => undefined);
}

/** Loads a bundle; a newer load ends an older one. */
async function load(location) {
  state.loading?.abort();
  const { signal } = (state.loading = new AbortController());
  const before = state.model;
  state.model = null;
  await before?.close();
  if (signal.aborted) return;
  say("loading …");
  find("loading").hidden = false;
  find("loading").value = 0;
  try {
    const onProgress = (done, all) => {
      if (signal.aborted) return;
      find("loading").value = done / all;
      say(`${(done / 1e6).toFixed(0)} of ${(all / 1e6).toFixed(0)} MB`);
    };
    const provider = find("provider").value;
    const model = await SolModel.load(location, { provider, onProgress, signal });
    if (signal.aborted) return await model.close();
    state.model = model;
    const { config } = state.model.bundle;
    state.chats = config.files.has("chat_template.jinja");
    state.floor = floorOf(state.model);
    state.messages = [];
    find("text").replaceChildren();
    find("model").textContent = `${config.model.name} on ${state.model.provider}`;
    find("prompt").placeholder = state.chats ? "Write a message" : "Begin a text";
    show(true);
    say("");
    find("prompt").focus();
  } catch (error) {
    if (!signal.aborted) say(worded(error), true);
  } finally {
    if (!signal.aborted) find("loading").hidden = true;
  }
}

async function answer(text) {
  const { model, messages } = state;
  const prompt = state.chats ? [...messages, { role: "user", content: text }] : text;
  find("text").append(block("turn", text));
  const shown = block("answer", "");
  find("text").append(shown);
  follow(true); // the question may be longer than the screen
  state.abort = new AbortController();
  find("send").textContent = "Stop";
  try {
    const budget = Number(find("budget").value) / 100;
    const options = { budget, max_new_tokens: 256, signal: state.abort.signal };
    state.stream = await model.stream(prompt, options);
    for await (const token of state.stream) {
      shown.append(shaded(token));
      report(token);
      follow();
      await new Promise((resolve) => setTimeout(resolve)); // lets the browser paint
    }
  } catch (error) {
    if (error.name !== "AbortError") shown.append(block("error", worded(error)));
  } finally {
    const said = state.stream?.result.text;
    if (said) state.messages = [...messages, { role: "user", content: text }, { role: "assistant", content: said }];
    state.stream = state.abort = null;
    find("send").textContent = "Send";
  }
}

/** A token's text on a shade between the cheapest and the dense step. */
function shaded(token) {
  const piece = document.createElement("span");
  piece.textContent = token.text;
  const cost = token.relative_cost || 1; // the first token comes of the prompt, which ran dense
  const shade = (cost - state.floor) / (1 - state.floor || 1);
  piece.style.setProperty("--cost", Math.min(Math.max(shade, 0), 1).toFixed(2));
  piece.title = `${token.action}, cost ${percent(cost)}, ${token.ms.toFixed(0)} ms`;
  return piece;
}

/** Relative cost of the cheapest action. */
function floorOf({ actions }) {
  return Math.min(...actions.map((action) => action.relative_cost));
}

function report(token) {
  const { tokens, tokens_per_second } = state.stream.result;
  find("requested").textContent = percent(token.requested_budget);
  find("achieved").textContent = percent(token.achieved_budget);
  find("rate").textContent = tokens_per_second.toFixed(1);
  find("count").textContent = tokens.length;
}

function block(kind, text) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

/** Keeps the newest text in sight, unless the reader has scrolled up; `anyway` even then. */
function follow(anyway = false) {
  const page = document.scrollingElement;
  const below = page.scrollHeight - page.clientHeight - page.scrollTop;
  if (anyway || below < 160) page.scrollTop = page.scrollHeight;
}

function show(isLoaded) {
  find("open").hidden = isLoaded;
  find("panel").hidden = !isLoaded;
  find("change").hidden = !isLoaded;
}

function say(text, isError = false) {
  find("state").textContent = text;
  find("state").classList.toggle("error", isError);
}

function worded(error) {
  return error instanceof SolError ? error.message : `unexpected: ${error.message}`;
}

find("by-url").addEventListener("submit", (event) => {
  event.preventDefault();
  load(find("url").value.trim());
});
find("folder").addEventListener("change", (event) => {
  if (event.target.files.length > 0) load(event.target.files);
});
find("change").addEventListener("click", () => {
  state.abort?.abort();
  show(false);
});
find("budget").addEventListener("input", (event) => {
  const budget = Number(event.target.value) / 100;
  find("asked").textContent = percent(budget);
  if (state.stream !== null) state.stream.budget = budget;
});
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.abort !== null) {
    state.abort.abort();
    return;
  }
  const text = find("prompt").value.trim();
  if (text === "") return;
  find("prompt").value = "";
  answer(text);
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("ask").requestSubmit();
  }
});

// `?bundle=/bundles/NAME` loads at once, but only from here: a link must not load what another host has; `serve.js` names its bundles
const wanted = new URLSearchParams(location.search).get("bundle");
if (wanted !== null) {
  find("url").value = wanted;
  const place = URL.canParse(wanted, document.baseURI) ? new URL(wanted, document.baseURI) : location; // `load` says what is wrong
  if (place.origin === location.origin) load(wanted);
  else say(`This link names a bundle of ${place.host || place.protocol}. Press Load if you trust it.`);
} else {
  const names = await fetch("/bundles.json").then((response) => response.json(), () => []);
  if (names.length > 0) find("url").value = `/bundles/${names[0]}`;
}
