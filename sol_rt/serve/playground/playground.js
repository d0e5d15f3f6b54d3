/** The playground: one or two chats with the model, whose budgets move while the text streams. */
import { hasKey, keepKey, moveBudget, readModel, streamChat } from "./client.js";
import { budgetFor, cornersAt } from "./losses.js";
import { Pane } from "./pane.js";
import { fieldsOf, keep, readSettings, restore } from "./settings.js";
import { Speech } from "./speech.js";

const DEFAULT_LOSS = 0.005; // share of perplexity: that of answers for which nothing is asked
const SAMPLES = [
  "Name three rivers in Europe, with a sentence about each.",
  "Write a short story about a robot that learns to paint.",
  "Why is the sky blue?",
];

const find = (id) => document.getElementById(id);
const speech = new Speech(find("spoken"));
const panes = ["A", "B"].map((letter) => new Pane(find("pane"), letter, move));
find("panes").append(...panes.map((pane) => pane.element));

/** State of the page: the server's model, what ends the running answers, and when they have ended. */
const state = { model: null, abort: null, ended: Promise.resolve() };

/** Answers that run, by pane: id, the budget that the server has, and whether it is told another one. */
const running = new Map();

const shown = () => (document.body.classList.contains("beside") ? panes : panes.slice(0, 1));

/** Reads the server's model, with its key where it asks for one. */
async function begin() {
  for (;;) {
    try {
      state.model = await readModel();
      break;
    } catch (error) {
      if (error.status !== 401) return say(error.message, true);
      await askForKey(hasKey());
    }
  }
  const { id, losses, cost_model: unit } = state.model;
  find("model").textContent = `${id} · costs in ${unit === "measured" ? "measured ms" : unit}`;
  document.title = `${id} · sol_rt playground`;
  panes[0].fit(losses, budgetFor(cornersAt(losses, 0), DEFAULT_LOSS));
  panes[1].fit(losses, 1);
  say("");
}

async function askForKey(refused) {
  const dialog = find("key");
  find("key-error").textContent = refused ? "The server refuses this key." : "";
  find("secret").value = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  keepKey(find("secret").value.trim());
}

/** Asks the panes that are shown: both at a time, or one after the other, as rates are then those of one answer alone. */
async function answer(prompt, settings, fields) {
  const { signal } = (state.abort = new AbortController());
  find("send").textContent = "Stop";
  document.body.classList.add("busy");
  const asked = shown();
  const inTurn = asked.length > 1 && !find("together").checked;
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const pane of asked) {
    const messages = [...system, ...pane.messages, { role: "user", content: prompt }];
    pane.begin(prompt, { model: state.model.id, messages, ...fields }, inTurn && pane !== asked[0]);
  }
  try {
    if (inTurn) for (const pane of asked) await run(pane, signal, asked.length > 1);
    else await Promise.all(asked.map((pane) => run(pane, signal, asked.length > 1)));
  } finally {
    state.abort = null;
    document.body.classList.remove("busy");
    find("send").textContent = "Send";
  }
}

async function run(pane, signal, beside) {
  let failed = null;
  const exchange = pane.exchanges[pane.exchanges.length - 1];
  pane.proceed();
  if (beside) speech.end(`Answer ${pane.letter}:`);
  try {
    signal.throwIfAborted();
    const options = { stream: true, stream_options: { include_usage: true, include_sol: true } };
    Object.assign(exchange.request, { budget: pane.budget });
    for await (const chunk of streamChat({ ...exchange.request, ...options }, signal)) {
      if (!running.has(pane)) {
        running.set(pane, { id: chunk.id, budget: exchange.request.budget, moving: false });
        move(pane); // the dial may have moved meanwhile
      }
      const text = pane.take(chunk);
      if (!beside || !find("together").checked) speech.add(text);
    }
  } catch (error) {
    if (error.name !== "AbortError") failed = error.message;
    if (error.status === 401) askForKey(true);
  }
  running.delete(pane);
  const words = pane.end(failed);
  if (beside && find("together").checked) speech.add(exchange.steps.map((step) => step.text).join(""));
  speech.end(words);
}

/** Tells the server where the dial is, one request at a time, the newest last. */
async function move(pane) {
  const answer = running.get(pane);
  if (answer === undefined || answer.moving || answer.budget === pane.budget) return;
  answer.moving = true;
  answer.budget = pane.budget;
  try {
    await moveBudget(answer.id, answer.budget);
  } catch (error) {
    say(error.message, true);
  }
  answer.moving = false;
  move(pane);
}

function say(text, isError = false) {
  find("state").textContent = text;
  find("state").classList.toggle("error", isError);
}

/** Ends the running answers. */
async function stop() {
  state.abort?.abort();
  await state.ended;
}

async function compare(beside) {
  await stop();
  document.body.classList.toggle("beside", beside);
  find("compare").setAttribute("aria-pressed", String(beside));
  find("turns").hidden = !beside;
  find("keys").hidden = beside;
  for (const pane of panes) pane.name(beside);
  if (beside) panes[1].adopt(panes[0]);
}

for (const pane of panes) {
  for (const sample of SAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = sample;
    button.addEventListener("click", () => {
      find("prompt").value = sample;
      find("ask").requestSubmit();
    });
    pane.element.querySelector(".samples").append(button);
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.abort !== null) return void stop();
  const prompt = find("prompt").value.trim();
  if (prompt === "" || state.model === null) return;
  try {
    const settings = readSettings(form);
    state.ended = answer(prompt, settings, fieldsOf(settings));
  } catch (error) {
    return say(`${error.message}; see Settings`, true);
  }
  find("prompt").value = "";
  find("prompt").focus();
  say("");
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (state.abort === null) find("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.querySelector("dialog[open]") === null) stop();
});
find("compare").addEventListener("click", () => compare(!document.body.classList.contains("beside")));
find("fresh").addEventListener("click", async () => {
  await stop();
  for (const pane of panes) pane.clear();
  find("prompt").focus();
});

const form = find("settings").querySelector("form");
restore(form);
find("tune").addEventListener("click", () => find("settings").showModal());
form.querySelector('[value="clear"]').addEventListener("click", () => {
  for (const field of form.querySelectorAll("input, textarea")) field.value = "";
});
form.addEventListener("submit", (event) => {
  try {
    keep(form);
    find("settings-error").textContent = "";
  } catch (error) {
    event.preventDefault();
    find("settings-error").textContent = error.message;
  }
});
find("key").addEventListener("cancel", (event) => event.preventDefault()); // without a key there is nothing to do

begin();
