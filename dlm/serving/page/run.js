/**
 * The history of one answer: the content of every cell of the canvas after every forward. Knows neither the page nor
 * the network. Forwards count from 1; forward 0 is the canvas before the first.
 *
 * A cell's number never changes; `order` maps positions to cells. The two differ only after positions have been
 * inserted, which some algorithms do to make an answer longer.
 */

/** @typedef {{forward: number, text: string|null, confidence: number|null}} Entry text null: a mask again */

export class Run {
  /** @type {Entry[][]} by cell */
  #history = [];

  /** @param {string} algorithm as requested, until the server reports the one it used. */
  constructor(algorithm) {
    this.algorithm = algorithm;
    this.status = "running"; // running, done, stopped, failed
    this.started = false;
    this.text = "";
    this.finishReason = null;
    this.promptTokens = null;
    this.completionTokens = null;
    this.seed = null;
    /** Totals of the last event: nfe, tokens_per_forward, tokens_per_second, seconds. */
    this.totals = null;
    this.blockLength = 0;
    this.firstBlock = 0;
    /** Cells by position, after the last forward. */
    this.order = [];
    /** By cell: the forward after which it was inserted; 0 for the initial canvas. */
    this.born = [];
    /** By forward: the cells it wrote or cleared. */
    this.changed = [[]];
    this.blockOf = [null];
  }

  /** Process one `dlm` object of the stream. */
  take(event) {
    if (event.event === "start") this.#start(event);
    else if (event.event === "step") this.#step(event);
    else if (event.event === "end") this.#end(event);
  }

  /** Number of positions after the last forward. */
  get length() {
    return this.order.length;
  }

  /** The last known forward. */
  get forwards() {
    return this.changed.length - 1;
  }

  /** Number of cells filled by forwards. */
  get revealed() {
    return this.#history.filter(
      (entries) => entries.length && entries.at(-1).text !== null && entries.at(-1).forward > 0,
    ).length;
  }

  /** The content of a cell after a forward: an entry, or null for a mask. */
  at(cell, forward) {
    const found = this.#history[cell].findLast((entry) => entry.forward <= forward);
    return found === undefined || found.text === null ? null : found;
  }

  /** How often a cell had received a token by then; more than once means it was edited. */
  timesRevealed(cell, forward) {
    return this.#history[cell].filter((one) => one.text !== null && one.forward <= forward).length;
  }

  /** Blocks as `[start, stop)` pairs of positions. */
  get blocks() {
    const size = this.blockLength || this.length;
    const found = [];
    let [start, stop] = [0, this.firstBlock || size];
    while (start < this.length) {
      found.push([start, Math.min(stop, this.length)]);
      [start, stop] = [stop, stop + size];
    }
    return found;
  }

  /** Index in `blocks` of the block a forward worked on; null before the first. */
  blockAt(forward) {
    return this.blockOf.slice(0, forward + 1).findLast((block) => block !== null) ?? null;
  }

  #start(event) {
    this.started = true;
    this.blockLength = event.block_length ?? 0;
    this.firstBlock = event.first_block ?? 0;
    this.promptTokens = event.prompt_tokens ?? null;
    this.algorithm = event.algorithm ?? this.algorithm;
    this.seed = event.seed ?? null;
    this.#putIn(0, event.gen_length, 0);
    for (const [position, text] of event.tokens ?? []) this.#write(position, { forward: 0, text, confidence: null });
  }

  #step(event) {
    const forward = event.step;
    this.#count(forward);
    this.blockOf[forward] = event.block ?? null;
    for (const position of event.cleared ?? []) this.#write(position, { forward, text: null, confidence: null });
    for (const [position, text, confidence] of event.revealed ?? [])
      this.#write(position, { forward, text, confidence: confidence ?? null });
    if (event.inserted) this.#putIn(event.inserted[0], event.inserted[1], forward);
  }

  #end(event) {
    this.totals = event;
    this.algorithm = event.algorithm ?? this.algorithm;
    this.seed = event.seed ?? this.seed;
    this.#count(event.nfe ?? 0);
  }

  /** Forwards that revealed nothing send no event. */
  #count(forward) {
    while (this.forwards < forward) {
      this.changed.push([]);
      this.blockOf.push(null);
    }
  }

  #putIn(position, count, forward) {
    const cells = Array.from({ length: count }, (_, index) => this.born.length + index);
    for (const cell of cells) [this.born[cell], this.#history[cell]] = [forward, []];
    this.order.splice(position, 0, ...cells);
  }

  /** Positions before 0 lie in the prompt, which the canvas does not show. */
  #write(position, entry) {
    if (position < 0) return;
    if (position >= this.length) this.#putIn(this.length, position + 1 - this.length, entry.forward);
    const cell = this.order[position];
    this.#history[cell].push(entry);
    if (entry.forward > 0) this.changed[entry.forward].push(cell);
  }
}
