/** The playhead: which forward is shown, and when the next one is. Knows nothing of cells. */

const SLOWEST = 450; // milliseconds a step at 1x, for short runs
const FASTEST = 40;
const WHOLE_REPLAY = 9000; // a long run takes about so long
const LIVE_LAG = 1200; // while an answer arrives the playhead stays about so close behind it

export class Player {
  #timer = null;
  #live = false;
  #length = 0;

  /** @param {() => void} onChange called after each change of playhead, length or playing */
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

  /** Begin at the empty canvas and follow what arrives. */
  follow() {
    this.#stopTimer();
    [this.position, this.#length, this.#live, this.playing] = [0, 0, true, true];
    this.onChange();
  }

  /** Show a finished run at its end. */
  load(length) {
    this.#stopTimer();
    [this.position, this.#length, this.#live, this.playing] = [length, length, false, false];
    this.onChange();
  }

  /** More steps are known. */
  grow(length) {
    this.#length = length;
    if (this.playing && this.calm.matches) this.position = length;
    if (this.playing) this.#schedule();
    this.onChange();
  }

  /** Nothing more will arrive; what is left is played to its end. */
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

  /** Go to a step and stay there. */
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
