// Requests to this server: JSON in, JSON or a stream out, errors as ApiError.
import { find } from "./dom.js";
import { events } from "./sse.js";

export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const KEY = "rung-key";
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // no storage: the key is asked for again
}
let asking = null;

/** Asks for the API key; false where the dialog was closed without one. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = find("ask-key");
    dialog.addEventListener("close", () => {
      const given = find("api-key").value.trim();
      asking = null;
      if (dialog.returnValue !== "send" || !given) return resolve(false);
      key = given;
      try {
        sessionStorage.setItem(KEY, key);
      } catch {
        // lasts as long as the page
      }
      find("api-key").value = "";
      resolve(true);
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

async function request(path, { body, signal, keepalive = false } = {}) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal, keepalive, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401 && (await askForKey())) return request(path, { body, signal });
  throw await refusal(response);
}

async function refusal(response) {
  const said = await response.json().catch(() => ({}));
  const detail = typeof said.detail === "string" ? said.detail : "";
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  const message = said.error?.message || detail || `The server answered ${response.status}.`;
  return new ApiError(message, { status: response.status, retryAfter });
}

export const get = async (path) => (await request(path)).json();
export const post = async (path, body, options = {}) => (await request(path, { ...options, body })).json();

/** The chunks of a streamed chat completion. */
export async function* complete(path, body, signal) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request(path, { body: wanted, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ApiError("The answer broke off: the server sent something that is no JSON.");
    }
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server gave up this answer.");
    yield chunk;
  }
  throw new ApiError("The answer broke off: the connection ended early.");
}
