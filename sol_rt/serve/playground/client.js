/** The server's protocol: requests with the key, and the events of a streamed answer. */

const KEY = "sol_rt.api_key";

/** What the server refused, or a failed connection. `status` is 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Keeps the server's key in this tab. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** True if a key is kept. */
export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

/** The model of this server: its name, unit of costs and losses by budget. */
export async function readModel() {
  const list = await (await ask("v1/models", {})).json();
  return list.data[0];
}

/** Moves the dial of an answer that runs. One that has ended is no error. */
export async function moveBudget(id, budget) {
  try {
    await ask(`v1/budget/${encodeURIComponent(id)}`, { method: "POST", body: JSON.stringify({ budget }) });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

/** Yields the chunks of a streamed chat answer. Throws ServerError, and AbortError once `signal` says so. */
export async function* streamChat(body, signal) {
  const answer = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError("The connection ended in the middle of the answer.");
      const events = (held + value).split("\n\n");
      held = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue; // a comment, which keeps the connection open
        if (event === "data: [DONE]") return;
        const chunk = JSON.parse(event.slice("data: ".length));
        if (chunk.error) throw new ServerError(chunk.error.message);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

async function ask(path, options) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is sol-rt serve still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new ServerError(told.error?.message ?? `got HTTP status ${answer.status}`, answer.status);
}
