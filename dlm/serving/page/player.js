/** The playhead: which forward is shown, and when the next one follows. Knows nothing about cells. */

const SLOWEST = 450; // milliseconds per step at 1x, for short runs
const FASTEST = 40;
const WHOLE_REPLAY = 9000; // approximate duration of a long run
const LIVE_LAG = 1200; // approximate lag of the playhead while an answer arrives

export class Player {
  #timer = null;
  #live = false;
  #length = 0;

  /** @param {() => void} onChange called after each change of position, length or playing */
  constructor(onChange) {
    this.onChange = onChange;
    this.position = 0;
    this.playing = false;
    this.speed = 1;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
  }

  get length() {
    return this.#length;
  }

  /** Start at the empty canvas and follow incoming steps. */
  follow() {
    this.#stopTimer();
    [this.position, this.#length, this.#live, this.playing] = [0, 0, true, true];
    this.onChange();
  }

  /** Show a finished run at its last step. */
  load(length) {
    this.#stopTimer();
    [this.position, this.#length, this.#live, this.playing] = [length, length, false, false];
    this.onChange();
  }

  /** Extend the run to `length` steps. */
  grow(length) {
    this.#length = length;
    if (this.playing && this.calm.matches) this.position = length;
    if (this.playing) this.#schedule();
    this.onChange();
  }

  /** No more steps will arrive; the rest is played to the end. */
  finish() {
    this.#live = false;
    if (this.playing && this.position >= this.#length) this.playing = false;
    this.onChange();
  }

  toggle() {
    if (this.playing) {
      this.playing = false;
      this.#stopTimer();
    } else {
      if (this.position >= this.#length) this.position = 0;
      this.playing = true;
      this.#schedule();
    }
    this.onChange();
  }

  /** Go to a step and pause. */
  seek(position) {
    this.#stopTimer();
    this.playing = false;
    this.position = Math.max(0, Math.min(position, this.#length));
    this.onChange();
  }

  get #interval() {
    if (this.#live) return Math.min(SLOWEST, LIVE_LAG / Math.max(1, this.#length - this.position));
    return Math.max(FASTEST, Math.min(SLOWEST, WHOLE_REPLAY / Math.max(1, this.#length))) / this.speed;
  }

  #schedule() {
    if (this.#timer !== null || this.position >= this.#length) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.position += 1;
      if (this.position < this.#length) this.#schedule();
      else if (!this.#live) this.playing = false;
      this.onChange();
    }, this.#interval);
  }

  #stopTimer() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }
}
