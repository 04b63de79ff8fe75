// openai for Node: the checks of check_openai.py.
import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { CHECK_URL: baseURL, CHECK_KEY: apiKey, CHECK_MODEL: model, CHECK_HOME } = process.env;
const found = createRequire(join(CHECK_HOME, "package.json"));
const OpenAI = found("openai");
const { version } = JSON.parse(readFileSync(join(CHECK_HOME, "node_modules/openai/package.json")));

const TOKENS = 24, ROOM = 200, LONG = 8000, FREED_WITHIN = 60_000;
const CITIES = ["Oslo", "Rome"];
const SCHEMA = {
  type: "object",
  properties: { city: { enum: CITIES }, warm: { type: "boolean" } },
  required: ["city", "warm"],
  additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "get_weather", parameters: SCHEMA } };
const ASKED = [{ role: "user", content: "What is the capital?" }];

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const chatWith = (options = {}, http = {}) =>
  client.chat.completions.create(
    { model, messages: ASKED, max_tokens: TOKENS, temperature: 0, ...options }, http);
const textOf = async (options) => (await chatWith(options)).choices[0].message.content;
const isPlace = (text) => CITIES.includes(JSON.parse(text).city);
const all = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

async function metrics() {
  const url = baseURL.replace(/\/v1$/, "/metrics");
  const answer = await fetch(url, { headers: { Authorization: `Bearer ${apiKey}` } });
  const lines = (await answer.text()).split("\n").filter((line) => !/[#{]/.test(line));
  return Object.fromEntries(lines.map((line) => line.split(" ")));
}

const isBusy = (now) => ["running", "waiting", "slots_used"].some((name) => +now[`rung_${name}`]);

async function freesTheServer(goAway) {
  const before = await metrics();
  await goAway();
  const deadline = Date.now() + FREED_WITHIN;
  let now = await metrics();
  while (isBusy(now) && Date.now() < deadline) {
    await new Promise((resume) => setTimeout(resume, 20));
    now = await metrics();
  }
  assert.ok(!isBusy(now), "the answer is still being written");
  const written = now.rung_new_tokens_total - before.rung_new_tokens_total;
  assert.ok(written < LONG, `all ${LONG} tokens were written`);
}

const checks = {
  async models() {
    assert.deepEqual((await all(client.models.list())).map((one) => one.id), [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async chat() {
    const answer = await chatWith();
    assert.ok(answer.choices[0].message.content);
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, TOKENS);
  },
  async stream() {
    const chunks = await all(await chatWith({ stream: true }));
    const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
    assert.equal(text, await textOf());
    assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  },
  async usage() {
    const options = { stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await chatWith(options));
    assert.deepEqual(chunks.at(-1).usage, (await chatWith()).usage);
  },
  async system() {
    const told = await chatWith({ messages: [{ role: "system", content: "Be short." }, ...ASKED] });
    assert.ok(told.usage.prompt_tokens > (await chatWith()).usage.prompt_tokens);
  },
  async stop() {
    const text = await textOf();
    const end = text.slice(1).match(/[a-zA-Z]{2}/)[0];
    const choice = (await chatWith({ stop: [end] })).choices[0];
    assert.equal(choice.message.content, text.slice(0, text.indexOf(end)));
    assert.equal(choice.finish_reason, "stop");
  },
  async seed() {
    const said = (seed) => textOf({ temperature: 1, seed });
    assert.equal(await said(7), await said(7));
    assert.notEqual(await said(7), await said(8));
  },
  async logprobs() {
    const choice = (await chatWith({ logprobs: true, top_logprobs: 3 })).choices[0];
    const tokens = choice.logprobs.content;
    assert.equal(tokens.map((token) => token.token).join(""), choice.message.content);
    assert.ok(tokens.every((token) => token.logprob <= 0 && token.top_logprobs.length === 3));
  },
  async n() {
    const { choices } = await chatWith({ n: 3, temperature: 1, seed: 0 });
    assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
  },
  async tools() {
    const forced = { tool_choice: "required", parallel_tool_calls: false, max_tokens: ROOM };
    const { message, finish_reason } = (await chatWith({ tools: [TOOL], ...forced })).choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.ok(isPlace(message.tool_calls[0].function.arguments));
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "Rain." };
    assert.ok(await textOf({ tools: [TOOL], messages: [...ASKED, message, result] }));
    const streamed = client.chat.completions.stream(
      { model, messages: ASKED, temperature: 0, tools: [TOOL], ...forced });
    const whole = (await streamed.finalChatCompletion()).choices[0].message;
    assert.ok(isPlace(whole.tool_calls[0].function.arguments));
  },
  async schema() {
    const json_schema = { name: "place", schema: SCHEMA };
    const response_format = { type: "json_schema", json_schema };
    assert.ok(isPlace(await textOf({ response_format, max_tokens: ROOM })));
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: ["one", "two"] });
    for (const { embedding } of answer.data) {
      assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-5);
    }
    assert.equal(answer.data.length, 2);
  },
  async completions() {
    const asked = { model, prompt: ["a", "b"], max_tokens: TOKENS, seed: 0 };
    const answer = await client.completions.create(asked);
    assert.ok(answer.choices.length === 2 && answer.choices.every((choice) => choice.text));
  },
  async echo() {
    const prompt = "What is the capital?";
    const asked = { model, prompt, max_tokens: 0, echo: true, logprobs: 1 };
    const [{ text, logprobs }] = (await client.completions.create(asked)).choices;
    assert.equal(logprobs.tokens.join(""), text);
    assert.equal(text, prompt);
    assert.ok(logprobs.token_logprobs.slice(1).every((value) => value <= 0));
  },
  async unknown_model() {
    await assert.rejects(chatWith({ model: "no-such-model" }), (error) => {
      return error instanceof OpenAI.NotFoundError && error.code === "model_not_found";
    });
  },
  async wrong_key() {
    const stranger = new OpenAI({ baseURL, apiKey: "a-key-that-nobody-has", maxRetries: 0 });
    await assert.rejects(all(stranger.models.list()), OpenAI.AuthenticationError);
  },
  async abort() {
    await freesTheServer(async () => {
      for await (const _ of await chatWith({ stream: true, max_tokens: LONG })) break;
    });
    await freesTheServer(() =>
      assert.rejects(
        chatWith({ max_tokens: LONG }, { timeout: 1000 }), OpenAI.APIConnectionTimeoutError));
  },
};

const tell = (line) => appendFileSync(process.argv[2], JSON.stringify(line) + "\n");
tell({ version, behaviours: Object.keys(checks) });
for (const [behaviour, check] of Object.entries(checks)) {
  let error = null;
  try {
    await check();
  } catch (thrown) {
    const where = thrown.stack?.match(/check_openai\.mjs:\d+/)?.[0] ?? "";
    error = `${where} -> ${thrown.name}: ${thrown.message}`;
  }
  tell({ behaviour, error });
}
