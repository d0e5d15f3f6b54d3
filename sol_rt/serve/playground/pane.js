/** One conversation at one budget: its dial, its text shaded by cost, and the figures of the newest answer. */
import { draw, inWords } from "./chart.js";
import { cornersAt, lossAt, placeOf, worded } from "./losses.js";

const percent = (share) => `${Math.round(100 * share)}%`;

/** Facts of each token on the page, by its element. */
const stepOf = new WeakMap();

/** A column of the page. `exchanges` are the questions and answers so far. */
export class Pane {
  #find;
  #answer = null; // the element that takes the running answer's tokens
  #curves = [];
  #held = ""; // text whose step has not come
  #drawing = 0;

  /**
   * @param {HTMLTemplateElement} template
   * @param {string} letter that names the pane beside another one
   * @param {(pane: Pane) => void} moved called when the user has moved the dial
   */
  constructor(template, letter, moved) {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.letter = letter;
    this.exchanges = [];
    this.#find = (selector) => this.element.querySelector(selector);
    this.log = this.#find(".log");
    this.slider = this.#find("input");
    this.slider.id = `budget-${letter}`;
    this.#find("label").htmlFor = this.slider.id;
    this.#find("output").htmlFor = this.slider.id;
    this.#find(".letter").textContent = letter;
    this.slider.addEventListener("input", () => {
      this.#showDial();
      moved(this);
    });
    this.#find(".trace").addEventListener("click", () => this.#download());
    this.log.addEventListener("pointerover", (event) => this.#point(event.target));
    this.log.addEventListener("pointerleave", () => this.#point(null));
    this.log.addEventListener("click", (event) => this.#point(event.target));
    this.log.addEventListener("scroll", () => this.#point(null), { passive: true });
    this.log.addEventListener("focusout", () => this.#point(null));
    this.log.addEventListener("keydown", (event) => this.#walk(event));
    this.name(false);
    this.clear();
  }

  /** Names the parts for screen readers, by the letter where there are two panes. */
  name(beside) {
    const suffix = beside ? ` ${this.letter}` : "";
    this.element.setAttribute("aria-label", `Chat${suffix}`);
    this.log.setAttribute("aria-label", `Conversation${suffix}; left and right arrow keys tell what each token took`);
    this.#find("label").textContent = `Budget${suffix}`;
    this.#find(".bar").setAttribute("aria-label", `Expected loss${suffix}`);
    this.#find(".trace").setAttribute("aria-label", `Download the trace${suffix}`);
  }

  /** Takes the losses that the server tells, and sets the dial. */
  fit(curves, budget) {
    this.#curves = curves;
    this.#find(".loss").hidden = curves.length === 0;
    this.slider.value = String(Math.round(100 * budget));
    this.#showDial();
  }

  /** The budget of the dial, 0 to 1. */
  get budget() {
    return Number(this.slider.value) / 100;
  }

  /** What budgets lose where the conversation is now. */
  get #corners() {
    const read = this.exchanges.reduce((most, { usage }) => usage?.total_tokens ?? most, 0);
    return cornersAt(this.#curves, read + (this.#answer === null ? 0 : this.exchanges.at(-1).steps.length));
  }

  /** The conversation so far, as the protocol has it. */
  get messages() {
    return this.exchanges.flatMap((exchange) => {
      const { prompt, said } = exchange;
      return said ? [{ role: "user", content: prompt }, { role: "assistant", content: said }] : [];
    });
  }

  /** Shows the same conversation as another pane. */
  adopt(pane) {
    this.clear();
    for (const exchange of pane.exchanges) {
      this.#open(exchange);
      for (const step of exchange.steps) this.#append(step);
      this.#close();
    }
    if (this.exchanges.length > 0) this.#report();
  }

  /** Forgets the conversation. */
  clear() {
    this.exchanges = [];
    this.#answer = null;
    for (const shown of this.log.querySelectorAll(".turn, .answer, .error")) shown.remove();
    this.#find(".welcome").hidden = false;
    for (const figure of this.element.querySelectorAll("dd")) figure.textContent = "–";
    this.#find(".trace").disabled = true;
    draw(this.#find("svg"), []);
    this.#find("svg").setAttribute("aria-label", inWords([]));
  }

  /** Begins an answer: shows the question, and room for the text. */
  begin(prompt, request, waits) {
    this.#open({ prompt, request, id: null, finish_reason: null, usage: null, sol: null, steps: [] });
    this.#answer.classList.toggle("waiting", waits);
    this.#report();
    this.#follow(true);
  }

  /** The server has begun to work on the answer. */
  proceed() {
    this.#answer.classList.remove("waiting");
    this.#answer.classList.add("running");
  }

  /** Takes a chunk of the stream; returns the text that came with it. */
  take(chunk) {
    const exchange = this.exchanges[this.exchanges.length - 1];
    exchange.id ??= chunk.id;
    if (chunk.usage) {
      exchange.usage = chunk.usage;
      exchange.sol = chunk.sol;
    }
    const choice = chunk.choices[0];
    exchange.finish_reason = choice?.finish_reason ?? exchange.finish_reason;
    exchange.said = (exchange.said ?? "") + (choice?.delta?.content ?? "");
    const text = textOf(choice?.delta);
    this.#held += text;
    if (choice === undefined || !chunk.sol) return text; // the chunk with the step comes last of a token's
    const step = { text: this.#held, ...chunk.sol };
    this.#held = "";
    exchange.steps.push(step);
    this.#append(step);
    if (!this.#drawing) {
      this.#drawing = requestAnimationFrame(() => {
        this.#drawing = 0;
        this.#report();
        this.#follow();
      });
    }
    return text;
  }

  /** Ends the answer, with an error where there was one; returns a sentence about it. */
  end(error = null) {
    this.#close();
    const exchange = this.exchanges[this.exchanges.length - 1];
    if (exchange.steps.length === 0) this.#answer?.remove();
    if (error !== null) this.log.append(made("p", "error", error));
    this.#answer = null;
    this.#report();
    this.#follow();
    if (error !== null) return `Failed: ${error}`;
    const { steps } = exchange;
    const kept = `${steps.length} tokens, ${rateOf(exchange)} a second, ${percent(steps.at(-1)?.achieved_budget ?? 1)} of the dense cost`;
    return exchange.finish_reason === null ? `Stopped: ${kept}.` : `The answer is complete: ${kept}.`;
  }

  #open(exchange) {
    this.exchanges.push(exchange);
    this.#find(".welcome").hidden = true;
    this.#answer = made("p", "answer", "");
    this.log.append(made("p", "turn", exchange.prompt), this.#answer);
  }

  #close() {
    this.#answer?.classList.remove("waiting", "running");
  }

  #append(step) {
    if (step.text === "") return;
    const shown = made("span", "token", step.text);
    if (step.cost !== null) {
      const floor = this.#corners[0]?.budget ?? 0;
      const shade = Math.min(Math.max((step.cost - floor) / (1 - floor || 1), 0), 1);
      shown.style.setProperty("--cost", shade.toFixed(2));
    } else {
      shown.classList.add("read"); // of the prompt's own run
    }
    stepOf.set(shown, step);
    this.#answer.append(shown);
  }

  /** Shows the figures of the newest answer. */
  #report() {
    const exchange = this.exchanges[this.exchanges.length - 1];
    const { steps } = exchange;
    const last = steps[steps.length - 1];
    const show = (name, text) => (this.#find(`[data-of="${name}"]`).textContent = text);
    show("achieved", steps.length > 1 ? percent(last.achieved_budget) : "–");
    show("rate", rateOf(exchange));
    show("count", String(steps.length));
    show("loss", lossOf(steps));
    this.#showLoss();
    this.#find(".trace").disabled = !this.exchanges.some((each) => each.steps.length > 0);
    draw(this.#find("svg"), steps);
    if (this.#answer === null) this.#find("svg").setAttribute("aria-label", inWords(steps));
  }

  #showDial() {
    this.#find("output").textContent = percent(this.budget);
    const loss = lossAt(this.#corners, this.budget);
    this.slider.setAttribute("aria-valuetext", `${percent(this.budget)} of the dense cost${loss === null ? "" : `, expected perplexity ${worded(loss)}`}`);
    this.#showLoss();
  }

  /** Shows the loss that the export measured at the dial's budget. */
  #showLoss() {
    const loss = lossAt(this.#corners, this.budget);
    if (loss === null) return;
    const bar = this.#find(".bar");
    bar.style.setProperty("--loss", placeOf(loss).toFixed(3));
    bar.setAttribute("aria-valuenow", placeOf(loss).toFixed(2));
    bar.setAttribute("aria-valuetext", `perplexity ${worded(loss)}`);
    this.#find(".loss strong").textContent = worded(loss);
  }

  /** Keeps the newest text in sight, unless the reader has scrolled up; `anyway` even then. */
  #follow(anyway = false) {
    const below = this.log.scrollHeight - this.log.clientHeight - this.log.scrollTop;
    if (anyway || below < 120) this.log.scrollTop = this.log.scrollHeight;
  }

  /** Shows what a token took, beside it; nothing for another element. */
  #point(target, aloud = false) {
    const tip = document.getElementById("tip");
    for (const other of this.log.querySelectorAll(".pointed")) other.classList.remove("pointed");
    const step = target instanceof Element ? stepOf.get(target) : undefined;
    tip.hidden = step === undefined;
    if (step === undefined) return;
    target.classList.add("pointed");
    const cost = step.cost === null ? "from the prompt's run" : `${percent(step.cost)} of dense`;
    tip.replaceChildren(made("b", "", cost), made("span", "", `${step.action ?? ""} · ${(step.ms ?? 0).toFixed(1)} ms`));
    const [box, own] = [target.getClientRects()[0], tip.getBoundingClientRect()];
    const above = box.top - own.height - 6;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${above < 8 ? box.bottom + 6 : above}px`;
    if (aloud) document.getElementById("told").textContent = `${step.text.trim() || "blank"}: ${tip.textContent}`;
  }

  /** Steps from token to token with the arrow keys. */
  #walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined || event.target !== this.log || event.altKey || event.ctrlKey || event.metaKey) return;
    const tokens = [...this.log.querySelectorAll(".token")];
    if (tokens.length === 0) return;
    event.preventDefault();
    const now = tokens.findIndex((token) => token.classList.contains("pointed"));
    const next = tokens[now < 0 ? (by > 0 ? 0 : tokens.length - 1) : Math.min(Math.max(now + by, 0), tokens.length - 1)];
    next.scrollIntoView({ block: "nearest" });
    requestAnimationFrame(() => this.#point(next, true)); // after the scroll, which hides the tip
  }

  /** Saves all answers with their tokens. */
  #download() {
    const trace = { format: "sol_rt.playground_trace", created: new Date().toISOString(), answers: this.exchanges };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(trace, null, 1)], { type: "application/json" }));
    link.download = `sol-rt-trace-${this.letter.toLowerCase()}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

/** Text of a delta: what is thought and what tools are called stands in it, too. */
function textOf(delta) {
  if (!delta) return "";
  const calls = (delta.tool_calls ?? []).map(({ function: called = {} }) => `${called.name ? `\n${called.name} ` : ""}${called.arguments ?? ""}`);
  return (delta.reasoning_content ?? "") + (delta.content ?? "") + calls.join("");
}

/** Decode steps a second: the server's figure once there is one. */
function rateOf({ steps, sol }) {
  if (sol?.tokens_per_second) return sol.tokens_per_second.toFixed(1);
  const ms = steps.slice(1).reduce((sum, step) => sum + (step.ms ?? 0), 0);
  return ms > 0 ? ((1000 * (steps.length - 1)) / ms).toFixed(1) : "–";
}

/** Mean loss of the steps so far. */
function lossOf(steps) {
  const losses = steps.map((step) => step.expected_loss).filter((loss) => typeof loss === "number");
  return losses.length > 0 ? worded(losses.reduce((sum, loss) => sum + loss, 0) / losses.length) : "–";
}

function made(tag, kind, text) {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = text;
  return element;
}
