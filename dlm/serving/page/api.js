/** The server's HTTP API: JSON, chat streams, and readable errors. URLs are relative to the page's. */

const KEY = "dlm-key";
let keyInMemory = "";

export function storedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? keyInMemory;
  } catch {
    return keyInMemory; // storage may be disabled; the key then lasts until the page is closed
  }
}

export function storeKey(key) {
  keyInMemory = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch (error) {
    console.warn("cannot store the key; it lasts until the page is closed:", error.message);
  }
}

const LOST = -1;
const IN_STREAM = -2;

/** Title and advice by status; `{wait}` and `{param}` are filled in. */
const WORDS = {
  [LOST]: [
    "The connection was lost",
    "What has arrived is kept above. Try again; if it happens often, check the server's log.",
  ],
  [IN_STREAM]: ["The server stopped in the middle of the answer", "What has arrived is kept above. Try again."],
  0: [
    "No connection to the server",
    "Check that the server is running at this page's address, then try again.",
  ],
  400: ["The server did not accept the request", "Change {param} and try again."],
  401: ["The server requires a key", "Enter the key the server was started with."],
  404: ["This server does not have that model", "Choose another model at the top of the page."],
  413: ["The message is too long for this server", "Shorten it, or start a new chat."],
  429: ["The server is busy", "Its queue is full. Try again {wait}."],
  503: [
    "The server is not ready",
    "It is starting, stopping or short of memory. Try again {wait}, or ask for fewer tokens.",
  ],
  504: ["The answer took too long", "Ask for fewer tokens, fewer steps or a faster algorithm."],
};

/** A failed request. `status` is the HTTP status, 0 if there was no response, or one of the two constants above. */
export class ApiError extends Error {
  constructor(status, message, { param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }

  /** @returns {{title: string, detail: string, advice: string}} */
  get words() {
    const other = [`The server answered with ${this.status}`, "Try again; if it persists, check the server's log."];
    const [title, advice] = WORDS[this.status] ?? other;
    const wait = this.retryAfter ? `in ${this.retryAfter} s` : "in a moment";
    const param = this.param ? `${this.param} in Parameters` : "the message or the parameters";
    return { title, detail: this.message, advice: advice.replace("{wait}", wait).replace("{param}", param) };
  }
}

async function request(path, options = {}) {
  const key = storedKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not respond.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** Routers send errors as plain text, servers in OpenAI's shape; both are parsed. */
async function failure(response) {
  const body = await response.text();
  let error = {};
  try {
    error = JSON.parse(body).error ?? {};
  } catch {
    error = { message: body.slice(0, 500) };
  }
  return new ApiError(response.status, error.message || response.statusText || "No reason given.", {
    param: error.param ?? null,
    retryAfter: response.headers.get("Retry-After"),
  });
}

export async function getJson(path) {
  return (await request(path)).json();
}

/**
 * Send a chat and read its stream.
 * @param {object} body of the request
 * @param {AbortSignal} signal stops it; the promise then rejects with an AbortError
 * @param {(chunk: object) => void} onChunk called with each chunk
 * @throws {ApiError}
 */
export async function streamChat(body, signal, onChunk) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of serverEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(IN_STREAM, chunk.error.message ?? "No reason given.");
    onChunk(chunk);
  }
  throw new ApiError(LOST, "The answer ended before its last chunk.");
}

/** The `data` of each event of an event stream. */
async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(LOST, "The server closed the connection before the answer was complete.");
  } finally {
    reader.cancel().catch(() => undefined); // a failed stream cannot be cancelled, and need not be
  }
}
