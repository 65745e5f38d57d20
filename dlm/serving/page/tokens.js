/** Makes the text of a token visible: white space as symbols, special tokens by name. */

import { make } from "./dom.js";

const SPECIAL = /^<[|/]?[\w▁ .:-]+\|?>$|^\[[A-Z_]+\]$/;
const END = /end_?of|eos|eot|im_end|<\/s>/i;
const SIGNS = { "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "·", "\u00a0": "·" };

/** The kind of a token: `end` and `special` are control tokens, `space` is white space only, `empty` has no text. */
export function kindOf(text) {
  if (text === "") return "empty";
  if (SPECIAL.test(text)) return END.test(text.replaceAll("|", "")) ? "end" : "special";
  return text.trim() === "" ? "space" : "text";
}

/** The nodes that show a token in a cell. */
export function tokenNodes(text) {
  const kind = kindOf(text);
  if (kind === "end") return [];
  if (kind === "empty") return [make("i", { class: "sign" }, "∅")];
  if (kind === "special") return [make("i", { class: "sign" }, text.replace(/^<[|/]?|\|?>$/g, ""))];
  return text
    .split(/(\s)/)
    .filter((piece) => piece !== "")
    .map((piece) =>
      piece.trim() === "" ? make("i", { class: "sign" }, SIGNS[piece] ?? "·") : document.createTextNode(piece),
    );
}

/** A token in words, for tooltips and screen readers. */
export function tokenWords(text) {
  const kind = kindOf(text);
  if (kind === "empty") return "no text";
  if (kind === "end" || kind === "special") return `${text} (special token)`;
  const signs = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  return kind === "space" ? `“${signs.replace(/[^\S]/g, "·")}” (white space)` : `“${signs}”`;
}
