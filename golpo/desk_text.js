// The text of the writer's desk: a textarea over a copy that shows who wrote what. The page itself
// is desk.js, which golpo/studio.py joins to this file.
// Positions are sent in characters as Python counts them; a textarea counts UTF-16 units.

const SEND_AFTER = 400; // milliseconds without a key until an edit is sent
const ASTRAL = /[\ud800-\udfff]/;

const count = (text) => (ASTRAL.test(text) ? Array.from(text).length : text.length);
const toPython = (text, units) => count(text.slice(0, units));
const toUnits = (text, at) =>
  ASTRAL.test(text) ? Array.from(text).slice(0, at).join("").length : at;

// The page's own texts, English → the page's language (golpo/translations.py). What a person or
// the model wrote goes into the page as a node of text, and is never translated.
let labels = {};
const t = (text) => (Object.hasOwn(labels, text) ? labels[text] : text);
const verbatim = (text) => document.createTextNode(text);
const TRANSLATED = ["ariaLabel", "placeholder", "title", "alt"];

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (TRANSLATED.includes(name)) node[name] = t(value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  // JupyterLab's own keys, such as Ctrl+Enter and the arrows, are for its cells.
  if (node.matches("button, input, select, textarea, summary")) {
    node.dataset.lmSuppressShortcuts = "true";
  }
  node.append(...children.map((child) => (typeof child === "string" ? t(child) : child)));
  return node;
}

// What differs between two texts: [first unit, units that are cut, new text]; pairs stay whole.
function difference(old, now) {
  let start = 0;
  const most = Math.min(old.length, now.length);
  while (start < most && old[start] === now[start]) start++;
  if (start && /[\ud800-\udbff]/.test(old[start - 1])) start--;
  let tail = 0;
  while (tail < most - start && old[old.length - 1 - tail] === now[now.length - 1 - tail]) tail++;
  if (tail && /[\udc00-\udfff]/.test(old[old.length - tail])) tail--;
  return [start, old.length - tail - start, now.slice(start, now.length - tail)];
}

// [author, length] pairs, after `cut` characters at `at` gave way to those of `added`.
function spliceMarks(marks, at, cut, added) {
  const authors = marks.flatMap(([author, length]) => Array(length).fill(author));
  const result = [];
  extendMarks(result, runs(authors.slice(0, at)));
  extendMarks(result, added);
  extendMarks(result, runs(authors.slice(at + cut)));
  return result;
}

const runs = (authors) => authors.map((author) => [author, 1]);

// Pairs are added to `marks`; neighbours of one author become one.
function extendMarks(marks, added) {
  for (const [author, length] of added) {
    if (marks.at(-1)?.[0] === author) marks.at(-1)[1] += length;
    else if (length) marks.push([author, length]);
  }
}

// Whether `marks` are those of `old`, with more by the model at their end.
function isGrown(old, marks) {
  const before = (all) => String([all.slice(0, -1), all.at(-1)?.[0]]);
  return before(old) === before(marks) && marks.at(-1)?.[0] === 1;
}

// changed: called when a person typed; place: with a position that was clicked, or null.
class Paper {
  constructor(changed, place) {
    this.known = { text: "", marks: [] }; // as the kernel has said that it has it
    this.text = ""; // with the edits that were sent to it
    this.local = ""; // with what was typed since
    this.marks = []; // of local
    this.bits = [];
    this.sight = 0;
    this.found = null; // the first and last character of the word that is looked at
    this.tinted = true;
    this.changed = changed;
    this.place = place;
    this.area = h("textarea", {
      ariaLabel: "Story", spellcheck: false, rows: 1,
      placeholder: "Opening words, or nothing. Then press Write.",
      oninput: () => this.typed(), onclick: () => this.clicked(), onkeyup: () => place(null),
    });
    this.mirror = h("div", { className: "mirror", ariaHidden: "true" });
    this.node = h("div", { className: "paper" }, this.mirror, this.area);
  }

  typed() {
    const [start, cut, added] = difference(this.local, this.area.value);
    const at = toPython(this.local, start);
    const gone = count(this.local.slice(start, start + cut));
    this.marks = spliceMarks(this.marks, at, gone, [[0, count(added)]]);
    this.local = this.area.value;
    this.bits = [];
    this.found = null;
    this.draw();
    this.changed();
  }

  // What was typed since the last call, as the desk's action edit wants it; null for nothing.
  takeEdit() {
    if (this.text === this.local) return null;
    const [start, cut, text] = difference(this.text, this.local);
    const edit = { start: toPython(this.text, start), end: toPython(this.text, start + cut) };
    const length = count(this.text);
    this.text = this.local;
    return { ...edit, text, length };
  }

  clicked() {
    const { selectionStart, selectionEnd } = this.area;
    this.place(selectionStart === selectionEnd ? toPython(this.local, selectionStart) : null);
  }

  // The cursor's position if text follows it; null otherwise.
  cursor() {
    const at = this.area.selectionStart;
    return at > 0 && this.local.slice(at).trim() ? toPython(this.local, at) : null;
  }

  author(at) {
    for (const [author, length] of this.marks) {
      if (at < length) return author;
      at -= length;
    }
    return 0;
  }

  words() { return this.local.trim().split(/\s+/).filter(Boolean).length; }

  // Take in what the kernel changed in its text; false if it does not fit what is known of that.
  learn(event) {
    const { known } = this;
    if ("+" in event) {
      known.text += event["+"];
      extendMarks(known.marks, [[1, count(event["+"])]]);
    } else if ("at" in event) {
      const end = event.at + event.cut;
      if (end > count(known.text)) return false;
      const before = known.text.slice(0, toUnits(known.text, event.at));
      known.text = before + event.new + known.text.slice(toUnits(known.text, end));
      known.marks = spliceMarks(known.marks, event.at, event.cut, event.marks);
    }
    return true;
  }

  // Show what the kernel has; what was typed on another text is gone. True if it must be drawn.
  settle() {
    const { text, marks } = this.known;
    if (text === this.text && text !== this.local) return false; // more is being typed
    const [start, cut, added] = difference(this.local, text);
    const isLonger = start === this.local.length;
    const same = isLonger && !added && String(marks) === String(this.marks);
    const grows = isLonger && isGrown(this.marks, marks) && this.last?.className === "m";
    if (cut || added) {
      const follows = isLonger
        ? this.area.selectionStart === start : document.activeElement === this.area;
      this.area.setRangeText(added, start, start + cut, follows ? "end" : "preserve");
    }
    if (!isLonger) this.bits = [];
    this.text = this.local = text;
    this.marks = marks.map((mark) => [...mark]);
    if (grows) this.last.append(added);
    return !same && !grows;
  }

  // The copy, in parts that end where an author, a token's shade, the sight or a word changes.
  draw() {
    const characters = ASTRAL.test(this.local) ? Array.from(this.local) : this.local;
    const parts = [];
    const cuts = new Set([this.sight, ...(this.found ?? [])]);
    let at = 0;
    for (const [, length] of this.marks) cuts.add((at += length));
    let token = 0;
    for (const [length] of this.bits) cuts.add((token += length));
    const places = [...cuts, characters.length].filter((n) => n > 0 && n <= characters.length);
    let start = 0;
    let [mark, markEnd, bit, bitEnd] = [0, this.marks[0]?.[1], 0, this.bits[0]?.[0]];
    for (const end of [...new Set(places)].sort((a, b) => a - b)) {
      while (markEnd <= start && mark < this.marks.length) markEnd += this.marks[++mark]?.[1] ?? 0;
      while (bitEnd <= start && bit < this.bits.length) bitEnd += this.bits[++bit]?.[0] ?? 0;
      const words = characters.slice(start, end);
      const span = h("span", {}, verbatim(typeof words === "string" ? words : words.join("")));
      if (this.tinted && this.marks[mark]?.[0]) span.className = "m";
      if (this.bits[bit]) span.style.setProperty("--bits", Math.min(this.bits[bit][1], 12) / 12);
      if (this.found && start >= this.found[0] && end <= this.found[1]) span.classList.add("found");
      if (start && start === this.sight) {
        const text = t("the model sees the text from here on");
        parts.push(h("i", { className: "sight", "data-text": text }));
      }
      parts.push(span);
      start = end;
    }
    this.last = parts.at(-1);
    this.mirror.replaceChildren(...parts, "\u200b");
    this.mirror.classList.toggle("shaded", this.bits.length > 0);
  }
}
