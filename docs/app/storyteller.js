// The storyteller: a web worker that loads an ONNX model with its tokenizer and generates stories.
//
// From the page: {kind: "load", files: null | {name: File}},
// {kind: "write", run, title, opening, temperature, topK, topP, minP, maxTokens, seed},
// {kind: "stop", run}.
// To the page: progress, ready, piece, done and error.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

const [START, END, TITLE, TITLE_END] = ["<|start|>", "<|end|>", "<|title|>", "</|title|>"];
const MARKERS = [START, END, TITLE, TITLE_END, "<|endoftext|>"];
const RUNTIME = "vendor/ort-wasm-simd-threaded.wasm.gz";
const BUNDLED = ["model/model.onnx.gz", "model/tokenizer.json", "model/config.json"];
const REMAKE = "make a folder for this page with: python docs/app/make_model.py --checkpoint CHECKPOINT --output FOLDER";

let teller = null; // {session, tokenizer, context, usable, bytes}
let runtime = null; // a promise of the runtime's settings
let stopped = 0; // the last run that was stopped; those before it are over, too

// ---- Loading ------------------------------------------------------------------------------------
async function download(address, onBytes) {
  const answer = await fetch(new URL(address, import.meta.url));
  if (!answer.ok) throw new Error(`${address} was not found (HTTP ${answer.status}); serve the whole folder docs/app.`);
  const reader = answer.body.getReader();
  const chunks = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    onBytes(part.value.length);
  }
  return unpack(new Blob(chunks));
}

// A server may have unpacked a .gz file already; its first two bytes tell.
async function unpack(blob) {
  const head = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (head[0] !== 0x1f || head[1] !== 0x8b) return new Uint8Array(await blob.arrayBuffer());
  const plain = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

function prepareRuntime(onBytes) {
  runtime ??= download(RUNTIME, onBytes).then((binary) => {
    ort.env.wasm.wasmBinary = binary.buffer;
    ort.env.wasm.numThreads = 1; // more need headers that GitHub Pages does not send
    ort.env.logLevel = "error";
  });
  runtime.catch(() => (runtime = null)); // the next attempt downloads it again
  return runtime;
}

async function loadBundled() {
  let received = 0;
  const count = (n) => postMessage({ kind: "progress", received: (received += n) });
  const [model, tokenizer, config] = await Promise.all(BUNDLED.map((name) => download(name, count)).concat(prepareRuntime(count)));
  const text = (bytes) => new TextDecoder().decode(bytes);
  return open(model, text(tokenizer), text(config), "the bundled storyteller");
}

async function loadFiles(files) {
  const names = Object.keys(files);
  const model = names.find((name) => /\.onnx(\.gz)?$/.test(name));
  if (!model) {
    const found = names.length ? `, only ${names.slice(0, 3).join(", ")}` : "";
    throw new Error(`There is no .onnx file in what you dropped${found}; ${REMAKE}.`);
  }
  for (const name of ["tokenizer.json", "config.json"]) {
    if (!files[name]) throw new Error(`There is no ${name} beside ${model}; drop the whole folder.`);
  }
  await prepareRuntime(() => {});
  return open(await unpack(files[model]), await files["tokenizer.json"].text(), await files["config.json"].text(), model);
}

function parse(text, name) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} is not JSON; it is damaged, ${REMAKE}.`);
  }
}

async function open(model, tokenizerText, configText, name) {
  const tokenizerJson = parse(tokenizerText, "tokenizer.json");
  const { n_positions: context, n_head: heads, n_embd: width } = parse(configText, "config.json") ?? {};
  for (const [key, value] of Object.entries({ n_positions: context, n_head: heads, n_embd: width })) {
    if (!Number.isInteger(value) || value < 1) throw new Error(`config.json has no number ${key}, as GPT-2's has; ${REMAKE}.`);
  }
  let tokenizer;
  try {
    tokenizer = new Tokenizer(tokenizerJson, {});
  } catch (error) {
    throw new Error(`tokenizer.json is not a tokenizer that this page can read (${error.message}); ${REMAKE}.`);
  }
  if (tokenizerJson.decoder?.type !== "ByteLevel") throw new Error(`The tokenizer is not byte-level as GPT-2's is; ${REMAKE}.`);
  let session;
  try {
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`${name} is not a model that ONNX Runtime can read (${String(error.message).slice(0, 120)}); ${REMAKE}.`);
  }
  if (!session.inputNames.includes("past_key_values.0.key")) throw new Error(`${name} has no key/value cache; ${REMAKE}.`);
  const next = {
    session,
    tokenizer,
    name,
    context,
    layers: session.inputNames.filter((input) => input.endsWith(".key")).length,
    heads,
    width: width / heads,
    usable: tokenizer.get_vocab().size,
  };
  const probe = { teller: next, cache: null, length: 0 };
  try {
    await advance(probe, [0]);
  } catch (error) {
    throw new Error(`${name} does not fit its config.json (${String(error.message).slice(0, 120)}); ${REMAKE}.`);
  }
  return next;
}

// ---- Tokens -------------------------------------------------------------------------------------
// GPT-2 writes bytes as printable characters: those that print stand for themselves, the others
// follow from U+0100 on.
const BYTE_OF = (() => {
  const prints = (n) => (n >= 33 && n <= 126) || (n >= 161 && n <= 172) || n >= 174;
  const table = new Map();
  let moved = 0;
  for (let n = 0; n < 256; n++) table.set(prints(n) ? String.fromCharCode(n) : String.fromCharCode(256 + moved++), n);
  return table;
})();

function bytesOf(tokenizer, id) {
  const token = tokenizer.id_to_token(id) ?? "";
  if (MARKERS.includes(token)) return new TextEncoder().encode(token);
  return Uint8Array.from([...token].map((character) => BYTE_OF.get(character) ?? 63));
}

const withoutMarkers = (text) => MARKERS.reduce((rest, marker) => rest.replaceAll(marker, ""), text);

// The ids that a story begins with, as story_opening in golpo_utils.py makes them.
function storyOpening(tokenizer, title, opening) {
  const encode = (text) => (text ? tokenizer.encode(text, { add_special_tokens: false }).ids : []);
  const marker = (text) => {
    const id = tokenizer.token_to_id(text);
    return id === undefined ? encode(text) : [id]; // GPT-2's own vocabulary has no markers
  };
  const words = withoutMarkers(opening).replace(/\n+$/, "");
  const lineBreak = encode("\n");
  const name = withoutMarkers(title).trim();
  let ids = marker(START);
  if (name || words) ids = ids.concat(lineBreak);
  if (name) ids = ids.concat(marker(TITLE), encode(name), marker(TITLE_END), lineBreak, lineBreak);
  return ids.concat(encode(words));
}

// ---- The model ----------------------------------------------------------------------------------
const integers = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);

// Encode ids after those in state.cache → the logits (v,) of the token that follows.
async function advance(state, ids) {
  const { session, layers, heads, width } = state.teller;
  const past = state.cache ? state.length : 0;
  const total = past + ids.length;
  const feeds = { input_ids: integers(ids, [1, ids.length]) };
  if (session.inputNames.includes("attention_mask")) feeds.attention_mask = integers(Array(total).fill(1), [1, total]);
  if (session.inputNames.includes("position_ids")) feeds.position_ids = integers(ids.map((_, n) => past + n), [1, ids.length]);
  for (let n = 0; n < layers; n++) {
    for (const part of ["key", "value"]) {
      const empty = () => new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
      feeds[`past_key_values.${n}.${part}`] = state.cache ? state.cache[`present.${n}.${part}`] : empty();
    }
  }
  const results = await session.run(feeds);
  state.cache = results;
  state.length = total;
  const v = results.logits.dims[2];
  return results.logits.data.subarray(results.logits.data.length - v);
}

// ---- Sampling -----------------------------------------------------------------------------------
// Numbers in [0, 1) from a seed: sfc32, by Chris Doty-Humphrey (PractRand), with 53 bits in each.
function numbersFrom(seed) {
  let [a, b, c, d] = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, 0x9e3779b9, 1];
  const next = () => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum | 0;
    return sum >>> 0;
  };
  for (let n = 0; n < 15; n++) next();
  return () => ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) / 2 ** 53;
}

// The next id. Temperature, top-k, top-p and min-p in this order, as in golpo_utils.py.
function choose(logits, usable, { temperature, topK, topP, minP }, number) {
  let best = 0;
  for (let id = 1; id < usable; id++) if (logits[id] > logits[best]) best = id;
  if (!Number.isFinite(logits[best])) throw new Error("The model's logits are not numbers; its weights are damaged, load others.");
  if (temperature === 0) return best;
  let kept = Array.from({ length: usable }, (_, id) => ({ id, share: Math.exp((logits[id] - logits[best]) / temperature) }));
  kept.sort((one, other) => other.share - one.share);
  if (topK > 0) kept = kept.slice(0, topK);
  if (topP < 1) {
    const limit = topP * kept.reduce((sum, { share }) => sum + share, 0);
    let before = 0;
    kept = kept.filter(({ share }, n) => (before += share) - share < limit || n === 0);
  }
  kept = kept.filter(({ share }) => share >= minP);
  let point = number * kept.reduce((sum, { share }) => sum + share, 0);
  for (const { id, share } of kept) if ((point -= share) < 0) return id;
  return kept[kept.length - 1].id;
}

// ---- Generation ---------------------------------------------------------------------------------
const channel = new MessageChannel();
// Let waiting messages, such as Stop, be read.
const breathe = () => new Promise((done) => {
  channel.port1.onmessage = done;
  channel.port2.postMessage(0);
});

// Where a story's text ends: [the text that can be shown, the text that may begin <|end|>, whether
// <|end|> came]. In a vocabulary without markers it is several tokens.
function splitAtEnd(text) {
  if (text.includes(END)) return [text.slice(0, text.indexOf(END)), "", true];
  let held = Math.min(text.length, END.length - 1);
  while (!END.startsWith(text.slice(text.length - held))) held--;
  return [text.slice(0, text.length - held), text.slice(text.length - held), false];
}

async function write(order) {
  const { tokenizer, context, usable } = teller;
  const decoder = new TextDecoder(); // holds back half a character
  const number = numbersFrom(order.seed);
  const ends = [END, "<|endoftext|>"].map((marker) => tokenizer.token_to_id(marker));
  const state = { teller, cache: null, length: 0 };
  let window = storyOpening(tokenizer, order.title, order.opening);
  let waiting = window;
  let reason = "limit";
  let held = ""; // may be the beginning of <|end|>
  const tokens = [];
  const began = performance.now();
  while (tokens.length < order.maxTokens) {
    if (window.length > context) {
      // The newest half is encoded again, and generation continues.
      window = window.slice(-Math.floor(context / 2));
      waiting = window;
      state.cache = null;
    }
    await breathe();
    if (order.run <= stopped) {
      reason = "stopped";
      break;
    }
    const logits = await advance(state, waiting);
    const id = choose(logits, usable, order, number());
    if (ends.includes(id)) {
      reason = "end";
      break;
    }
    tokens.push(id);
    window = window.concat(id);
    waiting = [id];
    const [text, rest, ended] = splitAtEnd(held + decoder.decode(bytesOf(tokenizer, id), { stream: true }));
    held = rest;
    postMessage({ kind: "piece", run: order.run, text, count: tokens.length });
    if (ended) {
      reason = "end";
      break;
    }
  }
  const seconds = (performance.now() - began) / 1000;
  postMessage({ kind: "done", run: order.run, text: held + decoder.decode(), reason, tokens, seconds });
}

// Orders are carried out one after another; Stop does not wait.
let queue = Promise.resolve();
onmessage = ({ data }) => {
  if (data.kind === "stop") {
    stopped = data.run;
    return;
  }
  queue = queue.then(async () => {
    try {
      if (data.kind === "load") {
        teller = await (data.files ? loadFiles(data.files) : loadBundled());
        postMessage({ kind: "ready", name: teller.name, context: teller.context });
      } else {
        await write(data);
      }
    } catch (error) {
      postMessage({ kind: "error", during: data.kind, run: data.run, kept: Boolean(teller), text: error.message });
    }
  });
};
