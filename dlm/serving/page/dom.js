/** Builds elements without markup strings: model output always becomes a text node. */

export const find = (id) => document.getElementById(id);

/**
 * Create an element.
 * @param {string} tag
 * @param {Object<string, unknown>} [properties] `class`, `data-*`, `aria-*` and `role` become attributes, functions
 *   named `on...` listeners, everything else properties; null and undefined are skipped.
 * @param {...(Node|string|null)} children strings become text nodes; null is skipped.
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-"))
      element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
