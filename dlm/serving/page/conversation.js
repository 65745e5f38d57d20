/** The messages: questions, answers and their errors. */

import { find, make } from "./dom.js";

/** An error message with a button to try again. */
export function problemNodes({ title, detail, advice }, again) {
  return [
    make("strong", {}, title),
    make("p", {}, detail),
    make("p", { class: "advice" }, advice),
    make("button", { type: "button", class: "quiet bordered", onclick: again }, "Try again"),
  ];
}

export class Conversation {
  #turns = [];

  /** @param {{onShow: (turn: object) => void, onRetry: (turn: object) => void}} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.list = find("messages");
    this.scroll = find("talk-scroll");
  }

  get empty() {
    return this.#turns.length === 0;
  }

  /** Messages of answered turns, in request format; takes the first run of each turn. */
  get history() {
    return this.#turns
      .filter((turn) => turn.runs[0].status === "done")
      .flatMap((turn) => [
        { role: "user", content: turn.prompt },
        { role: "assistant", content: turn.runs[0].text },
      ]);
  }

  /** Add a question with the runs that will answer it. */
  add(prompt, runs) {
    const turn = { prompt, runs, parts: [], element: make("div", { class: "turn" }) };
    turn.element.append(make("div", { class: "asked" }, make("span", { class: "unseen" }, "You: "), prompt));
    for (const run of runs) turn.parts.push(this.#answer(turn, run));
    this.#turns.push(turn);
    this.list.append(turn.element);
    for (const run of runs) this.update(turn, run);
    turn.element.scrollIntoView({ block: "start" });
    return turn;
  }

  remove(turn) {
    this.#turns = this.#turns.filter((one) => one !== turn);
    turn.element.remove();
  }

  clear() {
    this.#turns = [];
    this.list.replaceChildren();
  }

  /** Mark the turn whose canvas is shown. */
  mark(turn) {
    for (const one of this.#turns) {
      one.element.classList.toggle("shown", one === turn);
      for (const part of one.parts) part.caption.setAttribute("aria-pressed", String(one === turn));
    }
  }

  /** Draw the current state of a run. */
  update(turn, run) {
    const part = turn.parts[turn.runs.indexOf(run)];
    const atEnd = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 60;
    const text = part.text.firstChild;
    if (text.data !== run.text) text.data = run.text;
    const running = run.status === "running";
    part.element.setAttribute("aria-busy", String(running));
    part.element.classList.toggle("running", running);
    part.text.hidden = !run.text && !running;
    part.caption.textContent = captionOf(run);
    part.caption.hidden = run.status === "failed" && !run.started;
    part.caption.disabled = !run.started;
    if (atEnd) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  /** Show an error below an answer, with advice. */
  fail(turn, run, words) {
    const part = turn.parts[turn.runs.indexOf(run)];
    part.problem.replaceChildren(...problemNodes(words, () => this.handlers.onRetry(turn)));
    part.problem.hidden = false;
    this.update(turn, run);
    part.problem.scrollIntoView({ block: "nearest" });
  }

  #answer(turn, run) {
    const text = make("div", { class: "answer-text" }, document.createTextNode(""));
    const caption = make("button", {
      type: "button",
      class: "caption",
      title: "Show this canvas",
      "aria-pressed": "false",
      onclick: () => this.handlers.onShow(turn),
    });
    const problem = make("div", { class: "problem-box", role: "alert", hidden: true });
    const element = make(
      "div",
      { class: "answer" },
      make("span", { class: "unseen" }, "Model: "),
      text,
      problem,
      caption,
    );
    turn.element.append(element);
    return { element, text, caption, problem };
  }
}

function captionOf(run) {
  const parts = [run.algorithm];
  if (run.status === "running") parts.push(run.started ? `${run.forwards} forwards so far` : "waiting");
  else {
    if (run.status === "stopped") parts.push("stopped");
    const forwards = run.totals?.nfe ?? run.forwards;
    parts.push(forwards === 1 ? "1 forward" : `${forwards} forwards`);
    if (run.totals?.tokens_per_forward !== undefined)
      parts.push(`${run.totals.tokens_per_forward.toFixed(2)} tokens each`);
    if (run.finishReason === "length") parts.push("cut off at the token limit");
    if (run.status === "done" && !run.text) parts.push("empty answer");
  }
  return parts.join(" · ");
}
