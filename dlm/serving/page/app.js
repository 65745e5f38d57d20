/** The page: a conversation, the canvas of the selected answer, and the parameters of the next one. */

import { ApiError, getJson, streamChat } from "./api.js";
import { Conversation, problemNodes } from "./conversation.js";
import { find, make } from "./dom.js";
import { conversesWell, examplesFor } from "./examples.js";
import { askForKey } from "./keys.js";
import { Panel } from "./panel.js";
import { Run } from "./run.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";

const stage = new Stage();
const panel = new Panel();
const settings = new Settings(showCount);
const conversation = new Conversation({ onShow: showTurn, onRetry: retry });
const prompt = find("prompt");
const model = find("model");
let controller = null; // of the answer that is arriving

function showCount() {
  find("panel-count").hidden = settings.count === 0;
  find("panel-count").textContent = String(settings.count);
  find("panel-toggle").setAttribute("aria-label", settings.count ? `Parameters, ${settings.count} set` : "Parameters");
}

function showTurn(turn) {
  stage.show(
    turn.runs,
    turn.runs.some((run) => run.status === "running"),
  );
  stage.update();
  conversation.mark(turn);
}

/** Query what the server offers; until then nothing can be sent. */
async function connect() {
  find("notice").hidden = true;
  try {
    const [models, algorithms] = await Promise.all([getJson("v1/models"), getJson("generation/algorithms")]);
    const names = models.data.map((one) => one.id);
    model.replaceChildren(...names.map((name) => make("option", {}, name)));
    model.disabled = names.length < 2;
    settings.load(algorithms);
    settings.sendsContext = conversesWell(names[0]);
    showExamples();
    setReady(true);
  } catch (error) {
    if (error instanceof ApiError && error.status === 401 && (await askForKey())) {
      await connect();
      return;
    }
    model.replaceChildren(make("option", {}, "not connected"));
    showNotice(wordsOf(error));
    setReady(false);
  }
}

function wordsOf(error) {
  if (error instanceof ApiError) return error.words;
  console.error(error);
  return {
    title: "The page could not read the server's answer",
    detail: String(error.message),
    advice: "The page and the server may be different versions: reload the page.",
  };
}

function showNotice(words) {
  find("notice").replaceChildren(...problemNodes(words, connect));
  find("notice").hidden = false;
}

function setReady(ready) {
  find("send").disabled = !ready;
  for (const chip of find("examples").children) chip.disabled = !ready;
}

function showExamples() {
  const chips = examplesFor(model.value).map(([label, text]) =>
    make("button", { type: "button", class: "chip", title: text, onclick: () => send(text) }, label),
  );
  find("examples").replaceChildren(...chips);
}

/** Ask a question; with a second algorithm chosen, ask both at once. */
async function send(text) {
  if (controller || find("send").disabled) return;
  const invalid = settings.invalid;
  if (invalid) {
    panel.toggle(true);
    invalid.focus();
    return;
  }
  const messages = [...(settings.sendsContext ? conversation.history : []), { role: "user", content: text }];
  const names = settings.names;
  const runs = names.map((name) => new Run(settings.label(name)));
  find("welcome").hidden = true;
  const turn = conversation.add(text, runs);
  stage.show(runs, true);
  conversation.mark(turn);
  controller = new AbortController();
  setBusy(true);
  const { signal } = controller;
  const outcomes = await Promise.all(
    runs.map((run, index) => answer(turn, run, messages, settings.body(names[index]), signal)),
  );
  controller = null;
  setBusy(false);
  const refused = outcomes.find((error) => error instanceof ApiError && error.status === 401);
  if (refused && (await askForKey())) retry(turn);
}

/** Fill a run from the server. @returns {Promise<Error|null>} the error, if any; it has already been shown. */
async function answer(turn, run, messages, options, signal) {
  const body = {
    model: model.value,
    messages,
    ...options,
    stream: true,
    stream_options: { include_usage: true },
    dlm_events: true,
  };
  let failure = null;
  try {
    await streamChat(body, signal, (chunk) => {
      take(run, chunk);
      conversation.update(turn, run);
      stage.update([run]);
    });
    run.status = "done";
  } catch (error) {
    if (error.name === "AbortError") run.status = "stopped";
    else [run.status, failure] = ["failed", error];
  }
  conversation.update(turn, run);
  if (failure) conversation.fail(turn, run, wordsOf(failure));
  stage.update([run]);
  return failure;
}

function take(run, chunk) {
  if (chunk.dlm) run.take(chunk.dlm);
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) run.text += choice.delta.content;
  if (choice?.finish_reason) run.finishReason = choice.finish_reason;
  if (chunk.usage)
    [run.promptTokens, run.completionTokens] = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens];
}

function retry(turn) {
  if (controller) return;
  conversation.remove(turn);
  send(turn.prompt);
}

function setBusy(busy) {
  const moved = document.activeElement === find("stop") || document.activeElement === find("send");
  find("send").hidden = busy;
  find("stop").hidden = !busy;
  find("clear").disabled = busy || conversation.empty;
  if (moved) (busy ? find("stop") : prompt).focus();
}

function submit() {
  const text = prompt.value.trim();
  if (!text || controller || find("send").disabled) return;
  prompt.value = "";
  send(text);
}

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
find("stop").addEventListener("click", () => controller?.abort());
find("clear").addEventListener("click", () => {
  conversation.clear();
  stage.clear();
  find("welcome").hidden = false;
  find("clear").disabled = true;
  prompt.focus();
});
model.addEventListener("change", showExamples);
new ResizeObserver(([{ target }]) => {
  // on a phone the replay sits above the composer
  document.body.style.setProperty("--composer-height", `${target.offsetHeight}px`);
}).observe(find("composer"));
connect();
