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

// [author, length] pairs after `cut` characters at `at` became `added` characters by a person.
function spliceMarks(marks, at, cut, added) {
  const authors = marks.flatMap(([author, length]) => Array(length).fill(author));
  authors.splice(at, cut, ...Array(added).fill(0));
  const result = [];
  for (const author of authors) {
    if (result.at(-1)?.[0] === author) result.at(-1)[1]++;
    else result.push([author, 1]);
  }
  return result;
}

// changed: called when a person typed; place: with a position that was clicked, or null.
class Paper {
  constructor(changed, place) {
    this.text = ""; // as the kernel has it
    this.local = ""; // with what was typed since
    this.marks = [];
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
    this.marks = spliceMarks(this.marks, at, gone, count(added));
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

  set(text) {
    this.text = this.local = this.area.value = text;
    this.bits = [];
  }

  replace(at, cut, text) {
    const start = toUnits(this.text, at);
    const end = toUnits(this.text, at + cut);
    if (this.local !== this.text) this.area.value = this.text;
    const mode = document.activeElement === this.area ? "end" : "preserve";
    this.area.setRangeText(text, start, end, mode);
    this.text = this.local = this.area.value;
    this.bits = [];
  }

  append(words) {
    if (!words) return; // beam search says only that it is at work
    const length = this.area.value.length;
    const mode = this.area.selectionStart === length ? "end" : "preserve";
    this.area.setRangeText(words, length, length, mode);
    this.text = this.local = this.area.value;
    const last = this.marks.at(-1);
    if (last?.[0]) last[1] += count(words);
    else this.marks.push([1, count(words)]);
    if (this.last?.className === "m") this.last.append(words);
    else this.draw();
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
