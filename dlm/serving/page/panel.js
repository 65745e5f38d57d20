/** The parameter panel: beside the canvas on a wide screen, over the page on a narrow one. */

import { find } from "./dom.js";

const BESIDE = matchMedia("(min-width: 1240px)");

export class Panel {
  constructor() {
    this.element = find("panel");
    this.button = find("panel-toggle");
    this.button.addEventListener("click", () => this.toggle(this.element.hidden));
    find("panel-close").addEventListener("click", () => this.toggle(false));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !this.element.hidden && !event.defaultPrevented) this.toggle(false);
    });
    BESIDE.addEventListener("change", () => this.#cover());
  }

  toggle(open) {
    const had = this.element.contains(document.activeElement);
    this.element.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("with-panel", open);
    this.#cover();
    if (open) find("panel-close").focus();
    else if (had) this.button.focus();
  }

  /** Elements covered by the panel cannot be focused. */
  #cover() {
    const covered = !this.element.hidden && !BESIDE.matches;
    for (const part of document.querySelectorAll(".top, .talk, .stage")) part.inert = covered;
  }
}
