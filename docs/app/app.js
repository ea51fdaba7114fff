// The page: it sends orders to storyteller.js, which works beside it, and shows what comes back.

const DOWNLOAD_BYTES = 18_730_000; // of the bundled model with its runtime, for the progress bar
const [START, END, TITLE, TITLE_END] = ["<|start|>", "<|end|>", "<|title|>", "</|title|>"];
const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("storyteller.js", import.meta.url), { type: "module" });

let run = 0; // pieces of earlier stories are not shown
let story = null; // {opening, text, seed, count, seconds, tokens, reason} of the story shown
let ready = false;
let due = false; // whether the story is drawn before the next frame

// ---- What is shown ------------------------------------------------------------------------------
function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("message").textContent = text;
}

const plain = (text) => [START, END, TITLE, TITLE_END].reduce((rest, marker) => rest.replaceAll(marker, ""), text);

// A story's text → its title and its prose. A title comes first, or it is none; without its end
// marker it ends with its line. What may be the beginning of a marker waits.
function split(text) {
  const written = text.replace(/<(\/?(\|\w*\|?)?)?$/, "");
  const from = written.indexOf(TITLE);
  if (from < 0 || written.slice(0, from).trim()) return { heading: "", prose: plain(written).trimStart() };
  const rest = written.slice(from + TITLE.length).trimStart();
  const to = rest.includes(TITLE_END) ? rest.indexOf(TITLE_END) : rest.search(/\n|$/);
  return { heading: plain(rest.slice(0, to)).trim(), prose: plain(rest.slice(to)).trimStart() };
}

function draw() {
  due = false;
  const { heading, prose } = split(story.text);
  $("heading").textContent = heading;
  $("heading").hidden = !heading;
  const own = document.createElement("span");
  own.className = "own";
  own.textContent = prose.startsWith(story.opening) ? story.opening : "";
  $("prose").replaceChildren(own, prose.slice(own.textContent.length).trimEnd());
}

function drawSoon() {
  if (!due) requestAnimationFrame(draw);
  due = true;
}

function showButtons(writing) {
  $("write").disabled = !ready || writing;
  $("stop").disabled = !writing;
  $("copy").disabled = $("download").disabled = !story || writing;
  $("again").hidden = !story || writing || $("seed").value !== "";
  $("story").setAttribute("aria-busy", String(writing));
}

const isNarrow = () => matchMedia("(max-width: 55.9rem)").matches;
const isWriting = () => !$("stop").disabled;

// ---- Orders -------------------------------------------------------------------------------------
function load(files) {
  stop();
  ready = false;
  complain("");
  $("progress").value = 0;
  if (files) $("progress").removeAttribute("value"); // no download: the bar only moves
  $("loading").hidden = false;
  showButtons(false);
  worker.postMessage({ kind: "load", files });
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

function write() {
  if (!ready || isWriting()) return;
  if (!$("form").checkValidity()) $("settings").open = true; // so that the browser can say why
  if (!$("form").reportValidity()) return;
  const value = (id) => Number($(id).value);
  const title = plain($("title").value).trim();
  const opening = plain($("opening").value).replace(/\n+$/, "");
  const seed = $("seed").value === "" ? randomSeed() : value("seed");
  run += 1;
  story = { opening, seed, count: 0, text: (title ? TITLE + title + TITLE_END : "") + opening, began: performance.now() };
  complain("");
  say("Writing …");
  showButtons(true);
  draw();
  worker.postMessage({
    kind: "write", run, title, opening, seed,
    temperature: value("temperature"), topK: value("top-k"), topP: value("top-p"),
    minP: value("min-p"), maxTokens: value("max-tokens"),
  });
  if (isNarrow()) $("write").scrollIntoView({ block: "start" }); // Stop and the story are in sight
}

// The page stops at once; the storyteller follows within a token.
function stop() {
  if (!isWriting()) return;
  worker.postMessage({ kind: "stop", run });
  run += 1;
  finish({ reason: "stopped", seconds: (performance.now() - story.began) / 1000 });
}

function finish({ reason, seconds, tokens }) {
  Object.assign(story, { reason, tokens });
  const how = { end: "finished", limit: "stopped at the limit of tokens", stopped: "stopped" }[reason];
  const pace = story.count ? `, ${(story.count / seconds).toFixed(0)} tokens/s` : "";
  draw();
  showButtons(false);
  say(`${story.count} tokens${pace} · ${how} · seed ${story.seed}`);
}

// ---- What the storyteller answers ---------------------------------------------------------------
const answers = {
  progress({ received }) {
    $("progress").value = Math.min(1, received / DOWNLOAD_BYTES);
  },
  ready({ name }) {
    ready = true;
    $("loading").hidden = true;
    showButtons(false);
    say(`Ready: ${name}.`);
  },
  piece(piece) {
    if (piece.run !== run) return;
    story.text += piece.text;
    story.count = piece.count;
    drawSoon();
  },
  done(done) {
    if (done.run !== run) return;
    story.text += done.text;
    finish(done);
    window.lastStory = { ...story, tokens: done.tokens, seconds: done.seconds }; // for tests
  },
  error({ during, run: failed, text, kept }) {
    if (during === "write" && failed !== run) return;
    $("loading").hidden = true;
    ready = ready || Boolean(kept); // a storyteller that was there before is there still
    complain(text);
    say("");
    if (during === "write") run += 1;
    showButtons(false);
  },
};
worker.onmessage = ({ data }) => answers[data.kind](data);
worker.onerror = () => complain("This browser cannot run the storyteller; use a newer one, and serve the folder (python -m http.server).");

// ---- Copy, download, drop -----------------------------------------------------------------------
function asText() {
  const { heading, prose } = split(story.text);
  return (heading ? `${heading}\n\n` : "") + prose.trim() + "\n";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(asText());
    say("Copied.");
  } catch {
    complain("The browser does not let this page copy; mark the story and press Ctrl+C.");
  }
}

function download() {
  const name = (split(story.text).heading || "story").replace(/\p{Cf}/gu, "").replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asText()], { type: "text/plain" }));
  link.download = `${(name || "story").slice(0, 60)}.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The files of a drop by their names, those of dropped folders and of folders in them, too.
async function droppedFiles(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = {};
  for (const entry of entries) {
    if (entry.isFile) {
      files[entry.name] = await new Promise((done, fail) => entry.file(done, fail));
    } else {
      const reader = entry.createReader();
      const read = () => new Promise((done, fail) => reader.readEntries(done, fail));
      // A browser gives at most 100 entries at a time.
      for (let some = await read(); some.length; some = await read()) entries.push(...some);
    }
  }
  return files;
}

// Text that is dragged into a field is the browser's own business.
const bringsFiles = (event) => event.dataTransfer.types.includes("Files");

addEventListener("dragover", (event) => {
  if (!bringsFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", async (event) => {
  if (!bringsFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  load(await droppedFiles(event.dataTransfer.items));
});
$("folder").onchange = ({ target }) => {
  if (target.files.length) load(Object.fromEntries([...target.files].map((file) => [file.name, file])));
  target.value = "";
};

// ---- Keys and buttons ---------------------------------------------------------------------------
$("form").onsubmit = (event) => {
  event.preventDefault();
  write();
};
$("stop").onclick = stop;
$("copy").onclick = copy;
$("download").onclick = download;
$("bundled").onclick = () => load(null);
$("again").onclick = () => {
  $("seed").value = story.seed;
  $("again").hidden = true;
  $("seed").focus();
};
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
  if (event.key === "Escape") stop();
});
for (const output of document.querySelectorAll("output")) {
  const slider = $(output.htmlFor.value);
  const show = () => (output.textContent = slider.value);
  slider.addEventListener("input", show);
  show();
}
$("settings").open = !isNarrow(); // on a phone the story stands close to its opening
load(null);
