/** One or two canvases side by side, their statistics, and a shared replay. */

import { Canvas } from "./canvas.js";
import { find, make } from "./dom.js";
import { Player } from "./player.js";

const EMPTY_CELLS = 48;
const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const whole = (value) => (value === null || value === undefined ? "–" : String(value));

/** Name, value and explanation of each statistic of a run, as of `forward`. */
function figuresOf(run, forward) {
  const totals = run.totals;
  const forwards = totals?.nfe ?? run.forwards;
  const perForward = totals?.tokens_per_forward ?? (run.forwards ? run.revealed / run.forwards : null);
  const shown = run.status === "running" ? run.forwards : Math.min(forward, forwards);
  return {
    large: [
      [
        "forwards",
        shown < forwards ? `${shown} / ${forwards}` : whole(forwards),
        "Forward passes of the network (NFE)",
      ],
      ["tokens per forward", number(perForward, 2), "Tokens of the answer divided by forwards"],
      [
        "tokens/s",
        number(totals?.tokens_per_second, totals?.tokens_per_second >= 100 ? 0 : 1),
        "Tokens of the answer per second",
      ],
      ["seconds", number(totals?.seconds, totals?.seconds < 1 ? 3 : 2), "From admission to completion"],
    ],
    small: [
      ["prompt", whole(run.promptTokens), "Tokens in the prompt"],
      ["answer", whole(run.completionTokens), "Tokens in the answer"],
      ["seed", whole(run.seed), "Seed of this answer"],
    ],
  };
}

class Lane {
  constructor(run, name) {
    this.run = run;
    this.canvas = new Canvas(name);
    this.title = make("h2", { class: "lane-title" });
    this.small = make("dl", { class: "figures small" });
    this.large = make("dl", { class: "figures" });
    this.element = make(
      "article",
      { class: "lane" },
      make("header", { class: "lane-head" }, make("div", { class: "lane-name" }, this.title, this.small), this.large),
      this.canvas.element,
    );
  }

  draw(forward) {
    const at = Math.min(forward, this.run.forwards);
    this.canvas.draw(this.run, at);
    this.title.textContent = this.run.algorithm;
    const { large, small } = figuresOf(this.run, at);
    fill(this.large, large);
    fill(this.small, small);
  }
}

function fill(list, figures) {
  if (list.childElementCount !== figures.length) {
    list.replaceChildren(...figures.map(([name, , title]) => make("div", { title }, make("dt", {}, name), make("dd"))));
  }
  figures.forEach(([, value], index) => {
    const cell = list.children[index].lastElementChild;
    if (cell.textContent !== value) cell.textContent = value;
  });
}

export class Stage {
  #lanes = [];
  #frame = null;

  constructor() {
    this.player = new Player(() => this.#draw());
    this.slider = find("slider");
    this.counter = find("counter");
    this.play = find("play");
    this.slider.addEventListener("input", () => this.player.seek(Number(this.slider.value)));
    this.play.addEventListener("click", () => this.player.toggle());
    find("speed").addEventListener("change", (event) => {
      this.player.speed = Number(event.target.value);
    });
    for (const input of document.querySelectorAll('input[name="view"]')) {
      input.addEventListener("change", () =>
        find("lanes").classList.toggle("as-text", input.value === "text" && input.checked),
      );
    }
    for (let level = 0; level < 10; level += 1) find("scale").append(make("span", { "data-level": level }));
    new ResizeObserver(() => this.#drawTimeline()).observe(find("timeline"));
    this.clear();
  }

  get runs() {
    return this.#lanes.map((lane) => lane.run);
  }

  /** Show the empty canvas, before the first question. */
  clear() {
    this.#lanes = [];
    this.player.load(0);
    const cells = Array.from({ length: EMPTY_CELLS }, () => make("span", { class: "cell mask" }));
    const ghost = make("div", { class: "ghost", "aria-hidden": "true" }, make("div", { class: "cells" }, ...cells));
    find("lanes").replaceChildren(
      make("div", { class: "nothing" }, make("p", {}, "The canvas of the answer appears here."), ghost),
    );
  }

  /** Show runs; `live` follows them as they arrive, otherwise they are shown at their last step. */
  show(runs, live) {
    this.#lanes = runs.map(
      (run, index) => new Lane(run, runs.length > 1 ? `Canvas ${index + 1}` : "Canvas of the answer"),
    );
    find("lanes").replaceChildren(...this.#lanes.map((lane) => lane.element));
    find("lanes").classList.toggle("pair", runs.length > 1);
    if (live) this.player.follow();
    else this.player.load(this.#length);
  }

  /** Redraw after a change to these runs. */
  update(runs) {
    if (runs !== undefined && !runs.some((run) => this.runs.includes(run))) return;
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.player.grow(this.#length);
      if (this.runs.every((run) => run.status !== "running")) this.player.finish();
    });
  }

  get #length() {
    return Math.max(0, ...this.#lanes.map((lane) => lane.run.forwards));
  }

  #draw() {
    const { position, length, playing } = this.player;
    for (const lane of this.#lanes) lane.draw(position);
    this.slider.max = length;
    this.slider.value = position;
    this.slider.disabled = length === 0;
    this.play.disabled = length === 0;
    const words = playing ? "Pause" : position >= length && length > 0 ? "Play again" : "Play";
    this.play.setAttribute("aria-label", words);
    this.play.title = words;
    this.play.classList.toggle("playing", playing);
    this.counter.textContent = length ? `step ${position} of ${length}` : "no steps";
    this.slider.setAttribute("aria-valuetext", this.counter.textContent);
    this.#drawTimeline();
  }

  /** One bar per step, as high as the number of tokens it revealed, for the lane with the most steps. */
  #drawTimeline() {
    const svg = find("timeline");
    const { position, length } = this.player;
    const longest = this.runs.reduce((best, run) => (best && best.forwards >= run.forwards ? best : run), null);
    const counts = longest ? longest.changed.map((positions) => positions.length) : [];
    const most = Math.max(1, ...counts);
    const width = Math.min(0.72, (10 * Math.max(1, length)) / Math.max(1, svg.clientWidth));
    const bar = (count, step) => {
      const height = count ? Math.max(0.08, count / most) : 0;
      return height ? `M${step - width / 2} 1v${-height}h${width}v${height}z` : "";
    };
    svg.setAttribute("viewBox", `0 0 ${Math.max(1, length)} 1`);
    const [ahead, played] = svg.children;
    ahead.setAttribute(
      "d",
      counts
        .slice(position + 1)
        .map((count, index) => bar(count, index + position + 1))
        .join(""),
    );
    played.setAttribute(
      "d",
      counts
        .slice(0, position + 1)
        .map(bar)
        .join(""),
    );
  }
}
