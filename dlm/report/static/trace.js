/** The page of a run: its answers in a list, and the canvas of the one that is looked at. */

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
find("talk-scroll").scrollTop = 0; // each turn that was added came into view
scrollTo(0, 0);
