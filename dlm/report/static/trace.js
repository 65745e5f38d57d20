/** The page of a run: a list of its answers, and the canvas of the selected one. */

import { Conversation } from "./conversation.js";
import { find } from "./dom.js";
import { Run } from "./run.js";
import { Stage } from "./stage.js";

const stage = new Stage();
const conversation = new Conversation({ onShow: showTurn });

function showTurn(turn) {
  stage.show(turn.runs, false);
  conversation.mark(turn);
}

function finished({ algorithm, text, finish_reason, tokens, events }) {
  const run = new Run(algorithm);
  for (const event of events) run.take(event);
  return Object.assign(run, { status: "done", text, finishReason: finish_reason, completionTokens: tokens });
}

const turns = JSON.parse(find("answers").textContent).map((answer) =>
  conversation.add(answer.prompt, [finished(answer)]),
);
if (turns.length) showTurn(turns[0]);
find("talk-scroll").scrollTop = 0; // adding a turn scrolls it into view
scrollTo(0, 0);
