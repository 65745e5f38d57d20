/** The canvas of one run as a grid with one cell per position, drawn as of any forward. */

import { make } from "./dom.js";
import { kindOf, tokenNodes, tokenWords } from "./tokens.js";

const LEVELS = 10;
const DENSE = 256;
const DENSER = 640;
const SMALL_BLOCK = 12;

/** The colour-scale level of a confidence. */
export function levelOf(confidence) {
  return Math.min(LEVELS - 1, Math.max(0, Math.floor(confidence * LEVELS)));
}

/** Token, confidence and step in words. */
function wordsOf(entry) {
  const words = [tokenWords(entry.text)];
  if (entry.confidence !== null) words.push(`confidence ${entry.confidence.toFixed(entry.confidence > 0.99 ? 3 : 2)}`);
  words.push(entry.forward > 0 ? `step ${entry.forward}` : "given");
  return words;
}

export class Canvas {
  /** @type {HTMLElement[]} by position */
  #cells = [];
  /** @type {Map<number, number>} position by number of the cell */
  #places = new Map();
  #blocks = [];
  #run = null;
  #forward = 0;
  #fresh = [];
  #pointed = null;

  /** @param {string} name of the canvas, for screen readers */
  constructor(name) {
    this.blocks = make("div", { class: "blocks" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.element = make("div", { class: "canvas", role: "group", "aria-label": name }, this.blocks, this.tip);
    this.blocks.addEventListener("keydown", (event) => this.#move(event));
    this.blocks.addEventListener("focusin", (event) => this.#point(event.target));
    this.blocks.addEventListener("focusout", () => this.#point(null));
    this.blocks.addEventListener("pointerover", (event) => this.#point(event.target));
    this.blocks.addEventListener("pointerleave", () => this.#point(null));
  }

  /** Show a run as of `forward`. Only cells that changed are touched. */
  draw(run, forward) {
    if (run !== this.#run || run.length !== this.#cells.length) this.#build(run);
    const [low, high] = [Math.min(forward, this.#forward), Math.max(forward, this.#forward)];
    const fresh = new Set(forward > 0 ? run.changed[forward] : []);
    const touched = new Set([...this.#fresh, ...fresh]);
    for (let one = low + 1; one <= high; one += 1) for (const cell of run.changed[one]) touched.add(cell);
    for (const cell of touched) this.#paint(cell, forward, fresh.has(cell));
    [this.#fresh, this.#forward] = [fresh, forward];
    this.#hideUnborn();
    this.#markBlocks();
    const waiting = this.blocks.querySelector(".waiting");
    if (waiting)
      waiting.textContent = run.status === "running" ? "Waiting for the first step…" : "Nothing decoded.";
    if (this.#pointed) this.#point(this.#pointed);
  }

  /** The canvas before the first forward. */
  #build(run) {
    [this.#run, this.#forward, this.#fresh] = [run, 0, []];
    this.#places = new Map(run.order.map((cell, position) => [cell, position]));
    this.#cells = run.order.map((_, position) =>
      make("span", { role: "img", tabIndex: -1, "data-position": position }),
    );
    this.#blocks = run.blocks.map(([start, stop], index) => {
      const state = make("span", { class: "block-state" });
      const head = make("div", { class: "block-head" }, make("span", {}, `Block ${index + 1}`), state);
      const cells = make("div", { class: "cells" }, ...this.#cells.slice(start, stop));
      return {
        element: make("section", { class: "block", "aria-label": `Block ${index + 1}` }, head, cells),
        state,
        start,
        stop,
      };
    });
    this.blocks.replaceChildren(...this.#blocks.map((block) => block.element));
    this.blocks.classList.toggle("dense", run.length > DENSE);
    this.blocks.classList.toggle("denser", run.length > DENSER);
    this.blocks.classList.toggle("small", this.#blocks.length > 1 && run.blockLength <= SMALL_BLOCK);
    for (const cell of run.order) this.#paint(cell, 0);
    if (this.#cells.length) this.#cells[0].tabIndex = 0;
    else this.blocks.append(make("p", { class: "waiting" }));
  }

  #paint(cell, forward, fresh = false) {
    const position = this.#places.get(cell);
    const element = this.#cells[position];
    const entry = this.#run.at(cell, forward);
    element.className = "cell";
    element.removeAttribute("data-level");
    if (entry === null) {
      element.classList.add("mask");
      element.replaceChildren();
      element.setAttribute("aria-label", `Position ${position + 1}: mask`);
      return;
    }
    element.classList.add(kindOf(entry.text));
    element.classList.toggle("breaks", entry.text.includes("\n"));
    element.classList.toggle("fresh", fresh);
    element.classList.toggle("edited", this.#run.timesRevealed(cell, forward) > 1);
    element.classList.toggle("given", entry.confidence === null);
    if (entry.confidence !== null) element.dataset.level = levelOf(entry.confidence);
    element.replaceChildren(...tokenNodes(entry.text));
    element.setAttribute("aria-label", `Position ${position + 1}: ${wordsOf(entry).join(", ")}`);
  }

  /** Hide cells inserted by a later forward. */
  #hideUnborn() {
    this.#run.order.forEach((cell, position) => {
      if (this.#run.born[cell] > 0) this.#cells[position].hidden = this.#run.born[cell] > this.#forward;
    });
  }

  /** Mark the active block, finished blocks, and blocks that turned out not to be needed. */
  #markBlocks() {
    const run = this.#run;
    const over = run.status !== "running" && this.#forward >= run.forwards;
    const active = over ? null : run.blockAt(this.#forward);
    this.#blocks.forEach((block, index) => {
      const here = this.#cells.slice(block.start, block.stop).filter((cell) => !cell.hidden);
      const open = here.filter((cell) => cell.classList.contains("mask")).length;
      const untouched = open === here.length;
      const state = index === active ? "active" : over && untouched ? "unused" : open ? "waiting" : "done";
      block.element.hidden = here.length === 0;
      if (block.element.dataset.state !== state) {
        block.element.dataset.state = state;
        if (state === "active") this.#bringIntoView(block.element);
      }
      block.state.textContent =
        over && untouched ? "not needed" : untouched ? "" : `${here.length - open} of ${here.length}`;
    });
  }

  /** Scrolls the canvas only, and only if it has its own scroll bar: the page itself does not move. */
  #bringIntoView(element) {
    const box = this.element;
    if (box.scrollHeight <= box.clientHeight + 1) return;
    const [inner, outer] = [element.getBoundingClientRect(), box.getBoundingClientRect()];
    const outside = inner.top < outer.top || inner.bottom > outer.bottom;
    if (outside) box.scrollTop += inner.top - outer.top - outer.height / 3;
  }

  /** Show the tooltip of the hovered or focused cell. */
  #point(target) {
    const cell = target?.closest(".cell");
    this.#pointed = cell?.isConnected ? cell : null;
    this.tip.hidden = this.#pointed === null;
    if (this.tip.hidden) return;
    const position = Number(cell.dataset.position);
    const entry = this.#run.at(this.#run.order[position], this.#forward);
    const lines = entry === null ? ["mask"] : wordsOf(entry);
    this.tip.replaceChildren(
      make("b", {}, lines[0]),
      ...lines.slice(1).map((line) => make("span", {}, line)),
      make("span", {}, `position ${position + 1}`),
    );
    const [at, box] = [cell.getBoundingClientRect(), this.element.getBoundingClientRect()];
    const middle = at.left - box.left + at.width / 2 - this.tip.offsetWidth / 2;
    const left = Math.max(4, Math.min(middle, box.width - this.tip.offsetWidth - 4));
    const above = at.top - box.top - this.tip.offsetHeight - 6;
    const top = above < 0 ? at.bottom - box.top + 6 : above;
    this.tip.style.left = `${left + this.element.scrollLeft}px`;
    this.tip.style.top = `${top + this.element.scrollTop}px`;
  }

  /** Arrow keys, Home and End move the roving tab stop. */
  #move(event) {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const position = Number(cell.dataset.position);
    const last = this.#cells.length - 1;
    let next;
    if (event.key === "ArrowRight") next = position + 1;
    else if (event.key === "ArrowLeft") next = position - 1;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = last;
    else if (event.key === "ArrowDown") next = this.#beside(position, 1);
    else if (event.key === "ArrowUp") next = this.#beside(position, -1);
    else if (event.key === "Escape") this.#point(null);
    if (next === undefined) return;
    event.preventDefault();
    next = Math.max(0, Math.min(next, last));
    if (this.#cells[next].hidden) return;
    cell.tabIndex = -1;
    this.#cells[next].tabIndex = 0;
    this.#cells[next].focus();
  }

  /** The position of the closest cell in the next line below or above. */
  #beside(position, direction) {
    const from = this.#cells[position].getBoundingClientRect();
    let best = position;
    let line = null;
    let distance = Infinity;
    for (let one = position + direction; this.#cells[one]; one += direction) {
      const at = this.#cells[one].getBoundingClientRect();
      if (Math.abs(at.top - from.top) < 2) continue;
      line ??= at.top;
      if (Math.abs(at.top - line) >= 2) break;
      if (Math.abs(at.left - from.left) < distance) [best, distance] = [one, Math.abs(at.left - from.left)];
    }
    return best;
  }
}
