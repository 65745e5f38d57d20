/** Example prompts. The demo model can only answer the kinds of questions it was trained on. */

const DEMO = [
  ["Solve a 4×4 Sudoku", "Fill the zeros:\n0 1 3 2\n3 2 0 0\n0 3 0 0\n0 0 0 3"],
  ["Name one drink 32 times.", "Name one drink 32 times."],
  ["Split 17 eggs into 2.", "Split 17 eggs into 2."],
  ["Sort 7 3 12.", "Sort 7 3 12."],
  ["Reverse lamp moon fish.", "Reverse lamp moon fish."],
  ["Capital of France?", "Capital of France?"],
];

const GENERAL = [
  [
    "Solve a word problem",
    "A farmer has 17 eggs. She eats three for breakfast, bakes with four and sells the rest for $2 each. " +
      "How much does she earn? Reason step by step.",
  ],
  ["Write a function", "Write a Python function that returns the n-th Fibonacci number, with a docstring."],
  ["Write a short poem", "Write a poem of four lines about a photograph that develops."],
  ["Make a checklist", "List five things to check before a long bicycle tour, one a line."],
];

/** Labels and prompts for a model with this name. */
export function examplesFor(model) {
  return /demo/i.test(model) ? DEMO : GENERAL;
}

/** Whether a model with this name was trained on conversations; the demo was trained on single questions. */
export function conversesWell(model) {
  return !/demo/i.test(model);
}
