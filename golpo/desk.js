// The page of the writer's desk (golpo/desk.py): it sends {do: name, …} and shows what comes back.
// golpo/studio.py joins desk_text.js and desk_controls.js before it.

const NARROW = 47.5; // rem, as in desk.css
const ANSWER_WITHIN = 20_000; // milliseconds
const RECONNECT_WITHIN = 5_000;
const NEXT_WORD_WITHIN = 60_000;
// What changes the text. Until the kernel has done it, the page takes no typing: it would be lost.
const CHANGES = ["go", "retry", "undo", "redo", "new", "open", "delete", "take", "take_word"];
const FACTS = ["title", "state", "sight", "undo", "redo", "retry"]; // of Desk.facts
const STATES = { ready: "Ready", writing: "Writing", stopped: "Stopped" };
const ENDINGS = { end: "the story came to its end", limit: "max tokens reached" };

const readable = (word) => word.replaceAll("\n", "↵").trim() || t("space");
// A title as golpo/desk.py keeps it.
const trimmed = (title) => title.trim().replace(/\s+/g, " ");
const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

class Desk extends DeskControls {
  constructor(model, el) {
    super();
    labels = model.get("labels");
    this.model = model;
    this.id = Math.random().toString(36).slice(2, 8); // of this page, among those of its desk
    this.timers = {};
    this.paper = new Paper(() => this.typed(), (at) => this.placed(at));
    this.facts = { state: ["ready"] };
    this.wayTexts = [];
    this.shelf = { rows: [] };
    this.sentence = "";
    this.requests = Math.floor(1000 * Math.random()); // most likely no other page's number
    this.edits = new Set(); // requests whose change of the text the page shows already
    this.silent = false; // the kernel has not answered
    this.sent = 0; // messages; golpo/desk_inbox.py handles them in this order
    this.lost = false; // the kernel that had the story is gone
    this.el = el;
    el.classList.add("golpo");
    this.build();
    this.listener = (message, buffers) => this.receive(message, buffers ?? []);
    model.on("msg:custom", this.listener);
    this.reconnect = () => this.askAgain();
    model.on("comm_live_update", this.reconnect);
    this.askForAll();
  }

  get writing() { return this.facts.state[0] === "writing"; }

  // Until all there is comes, a change tells this page nothing, and the page takes no typing.
  askForAll() {
    this.isComplete = false;
    this.asked = "hello"; // the newest change that the kernel has not done yet, or null
    this.paper.area.readOnly = this.title.readOnly = true;
    this.edits.clear();
    this.send("hello");
  }

  close() {
    this.flush();
    this.model.off("msg:custom", this.listener);
    this.model.off("comm_live_update", this.reconnect);
    clearTimeout(this.waiting);
  }

  send(name, values = {}) {
    if (!["hello", "edit", "title", "form"].includes(name)) this.flush();
    this.say("");
    this.expectAnswer(ANSWER_WITHIN);
    const message = { do: name, page: this.id, sequence: this.sent, ...values };
    if (CHANGES.includes(name)) {
      this.asked = message.request = ++this.requests;
      this.showState();
    }
    try {
      this.model.send(message);
      this.sent++;
    } catch { /* a kernel that is restarting takes nothing, and so will not answer */ }
  }

  // Say so if nothing comes. lost: then the story is kept no longer, so the page takes no text.
  expectAnswer(milliseconds, lost = false) {
    const silent = "The kernel does not answer. Run the cell again; your stories are on the shelf.";
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      this.silent = true;
      this.lost = lost;
      this.say(silent);
      this.showState();
    }, milliseconds);
  }

  answered() {
    clearTimeout(this.waiting);
    if (!this.silent) return;
    this.silent = this.lost = false;
    this.say("");
    this.showState();
  }

  // The connection changed: the kernel restarts, or the page is connected to it again.
  askAgain() {
    this.flush();
    this.askForAll();
    this.expectAnswer(RECONNECT_WITHIN, true);
  }

  // The page, from top to bottom.

  build() {
    this.title = h("input", {
      className: "title", placeholder: "Title, or none", ariaLabel: "Title", autocomplete: "off",
      oninput: () => this.later("title", () => this.sendTitle()),
    });
    this.live = h("div", { className: "heard", ariaLive: "polite" });
    this.message = h("p", { className: "message", role: "alert" });
    this.state = h("p", { className: "state" });
    this.word = h("div", { className: "word", hidden: true, role: "group" });
    this.ways = h("section", { className: "ways", hidden: true, ariaLabel: "Ways on" });
    this.buttons = {
      go: button("Write", () => this.send("go"), { className: "primary", title: "Ctrl+Enter" }),
      stop: button("Stop", () => this.send("stop"), { className: "primary", title: "Esc" }),
      here: button("Continue from the cursor",
        () => this.send("go", { at: this.paper.cursor() })),
      retry: button("Retry", () => this.send("retry"), { title: "The last passage, once more" }),
      undo: button("Undo", () => this.send("undo"), { title: "Ctrl+Z" }),
      redo: button("Redo", () => this.send("redo"), { title: "Ctrl+Shift+Z" }),
      ways: button("Three ways on", () => this.send("ways"), {}),
      fresh: button("New story", () => this.send("new"), {}),
    };
    const bar = h("div", { className: "bar-of-buttons" }, ...Object.values(this.buttons));
    this.foot = h("div", { className: "foot" }, this.message, this.word, bar, this.state);
    this.speaker = h("p", { className: "small" });
    const text = h("div", { className: "text" }, this.title, this.paper.node, this.foot,
      this.ways, this.live);
    this.form = h("div", { className: "form" });
    const aside = h("div", { className: "controls" }, fold("Settings", true, this.form),
      this.buildShelf(), this.buildTaste(), this.buildInspector(), this.speaker);
    this.el.replaceChildren(h("div", { className: "desk" }, text, aside));
    // A narrow page begins with the text alone; its width is known once it is laid out.
    const observer = new ResizeObserver(() => {
      if (!this.el.clientWidth) return;
      observer.disconnect();
      const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
      for (const part of aside.children) part.open &&= this.el.clientWidth >= NARROW * rem;
    });
    observer.observe(this.el);
    this.el.addEventListener("keydown", (event) => this.key(event));
  }

  // What the kernel sends.

  receive(event, buffers) {
    this.answered();
    if ("done" in event) this.done(event.done);
    else if (event.ev === "all") this.showAll(event);
    else if (event.ev === "message") this.say(event.text);
    else if (!this.isComplete) return;
    else if ("+" in event || ["text", "state"].includes(event.ev)) this.change(event);
    else if ("w" in event) event.w.forEach(([n, words]) => this.wayTexts[n]?.append(words));
    else this[`on_${event.ev}`]?.(event, buffers);
    if (this.writing) this.expectAnswer(NEXT_WORD_WITHIN, true);
  }

  done(request) {
    if (request !== null && request === this.asked) {
      this.asked = null;
      this.showState();
    }
    if (this.edits.delete(request)) this.settle();
  }

  showAll(event) {
    this.isComplete = true;
    if (this.asked === "hello") this.asked = null;
    if (!this.fields) this.buildForm(event);
    this.fill(event.values);
    this.speaker.textContent = event.speaker;
    this.layer.max = event.layers - 1;
    this.head.max = event.heads - 1;
    this.shelf = { rows: [] };
    this.paper.known = { text: event.text, marks: event.marks };
    this.showFacts(event);
    this.settle();
    this.redraw();
  }

  // What is new of the story: words at the end, other text, or only facts about it.
  change(event) {
    if (!this.paper.learn(event)) return this.askForAll();
    const isForeign = "+" in event || ("at" in event && event.source !== this.id);
    if (isForeign && !this.word.hidden) this.hideWord();
    const seen = this.foot.getBoundingClientRect().bottom <= window.innerHeight + 40;
    this.showFacts(event);
    this.settle();
    if ("sight" in event) this.redraw();
    if ("+" in event && seen) this.foot.scrollIntoView({ block: "nearest" }); // Stop stays in view
  }

  showFacts(event) {
    const wrote = this.writing;
    for (const name of FACTS) if (name in event) this.facts[name] = event[name];
    if ("+" in event && !("state" in event) && !wrote) this.facts.state = ["writing"];
    this.showTitle(this.facts.title);
    this.showState();
    const hasEnded = wrote && !this.writing;
    if ("+" in event || hasEnded) this.speak(event["+"] ?? "", !this.writing);
    if (hasEnded) this.askBits();
  }

  // Once no edit of its own is on its way, the page shows what the kernel has.
  settle() {
    if (this.edits.size) return;
    if (this.paper.settle()) this.redraw();
    this.showState();
  }

  // A space that was typed last stays: more may follow.
  showTitle(title) {
    const typing = document.activeElement === this.title && trimmed(this.title.value) === title;
    if (!this.timers.title && !typing) this.title.value = title;
  }

  showState() {
    const { undo, redo, retry } = this.facts;
    const [why, tokens, rate] = this.facts.state;
    const state = this.lost ? "stopped" : why in STATES ? why : "ready";
    const writing = state === "writing";
    const speed = tokens ? `${tokens} ${t("tokens")}, ${rate} ${t("a second")}` : "";
    const ended = state === "ready" && tokens ? t(ENDINGS[why] ?? "") : "";
    const words = this.paper.words();
    this.state.textContent = [t(STATES[state]), ended, speed, `${words} ${t("words")}`]
      .filter(Boolean).join(" · ");
    if (this.openWords) this.openWords.textContent = words; // the story's row on the shelf
    this.el.dataset.state = state;
    const had = this.el.contains(document.activeElement) ? document.activeElement : null;
    const { go, stop, here, fresh, ways } = this.buttons;
    go.textContent = t(this.paper.marks.some(([author]) => author) ? "Continue" : "Write");
    go.hidden = writing;
    stop.hidden = !writing;
    here.hidden = writing || this.paper.cursor() === null;
    for (const [control, off] of [[this.buttons.undo, !undo], [this.buttons.redo, !redo],
      [this.buttons.retry, !retry], [fresh, false], [ways, false]]) {
      control.disabled = writing || this.lost || off;
    }
    go.disabled = here.disabled = this.lost;
    this.paper.area.readOnly = this.title.readOnly = writing || this.lost || this.asked !== null;
    if (had === go && writing) stop.focus();
    if (had === stop && !writing) go.focus();
  }

  redraw() {
    this.paper.sight = this.facts.sight ?? 0;
    this.paper.tinted = this.tint?.firstChild.checked ?? true;
    this.paper.draw();
  }

  // New text is read out sentence by sentence.
  speak(words, all = false) {
    this.sentence += words;
    const end = all ? this.sentence.length : this.sentence.search(/[.!?…]["”’']?\s+\S*$/) + 1;
    if (end > 0 && this.sentence.slice(0, end).trim()) {
      this.live.textContent = this.sentence.slice(0, end).trim();
      this.sentence = this.sentence.slice(end);
    }
  }

  say(text) { this.message.textContent = t(text); }

  // Change a part of the page; if it had the focus, its like gets it, or the story.
  keepFocus(part, change) {
    const active = document.activeElement;
    const had = active?.ariaLabel;
    const inside = part.contains(active);
    change();
    if (!inside) return;
    const controls = [...part.querySelectorAll("button")].filter((node) => node.offsetParent);
    (controls.find((node) => node.ariaLabel === had) ?? this.paper.area).focus();
  }

  // What a person does.

  later(name, action) {
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(() => { delete this.timers[name]; action(); }, SEND_AFTER);
  }

  flush() {
    for (const [name, send] of [["edit", () => this.sendEdit()], ["title", () => this.sendTitle()],
      ["form", () => this.sendForm()]]) {
      clearTimeout(this.timers[name]);
      delete this.timers[name];
      send();
    }
  }

  sendEdit() {
    const edit = this.paper.takeEdit();
    if (!edit) return;
    const request = ++this.requests;
    this.edits.add(request);
    this.send("edit", { ...edit, source: this.id, request });
  }

  sendTitle() {
    const title = trimmed(this.title.value);
    if (title !== trimmed(this.facts.title ?? "")) this.send("title", { title });
  }

  askBits() {
    if (this.shade.firstChild.checked && !this.writing) this.send("surprise");
    else if (this.paper.bits.length) {
      this.paper.bits = [];
      this.redraw();
    }
  }

  placed(at) {
    this.buttons.here.hidden = this.writing || this.paper.cursor() === null;
    if (at === null || this.writing) return;
    if (this.paper.author(at)) this.send("word", { at });
    else this.hideWord();
  }

  typed() {
    if (!this.word.hidden) this.hideWord();
    this.later("edit", () => this.flush());
  }

  hideWord() {
    this.keepFocus(this.word, () => { this.word.hidden = true; });
    this.paper.found = null;
    this.redraw();
  }

  key(event) {
    const command = event.ctrlKey || event.metaKey;
    const letter = event.key.toLowerCase();
    const inText = [this.paper.area, this.title].includes(event.target);
    let name = null;
    if (event.key === "Escape") name = this.writing ? "stop" : "hide";
    else if (command && event.key === "Enter") name = "go";
    else if (event.altKey && event.key === "Enter") name = "look";
    else if (command && inText && letter === "z") name = event.shiftKey ? "redo" : "undo";
    else if (command && inText && letter === "y") name = "redo";
    if (!name) return;
    event.preventDefault();
    event.stopPropagation();
    if (name === "hide") this.hideWord();
    else if (name === "look") this.paper.clicked();
    else this.send(name);
  }

  on_form(event) { if (event.source !== this.id) this.fill(event.values); }

  on_presets(event) { this.showPresets(event); }

  on_surprise(event) { this.paper.bits = event.bits; this.redraw(); }

  on_file(event, buffers) {
    const url = URL.createObjectURL(new Blob([buffers[0]], { type: event.type }));
    h("a", { href: url, download: event.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    this.say(`${t("Exported:")} ${event.name}`);
  }

  on_ways(event) {
    this.wayTexts = event.ways.map(([, , words]) => h("p", {}, verbatim(words)));
    const done = event.ways.every(([, , , ended]) => ended);
    const like = event.can_like && done && event.ways.length > 1;
    const article = ([label, title, ,], n) => h("article", {},
      h("h3", {}, verbatim(title || `${t("Way")} ${n + 1}`)), this.wayTexts[n], h("div", { className: "row" },
        button("Take this", () => this.send("take", { number: n }),
          { disabled: !done, ariaLabel: `${t("Take way")} ${n + 1}` }),
        button("I like this one", () => this.send("like", { number: n }),
          { hidden: !like, ariaLabel: `${t("I like way")} ${n + 1}` })),
      h("span", { className: "small" }, label.replace(/^seed\b/, t("seed"))));
    this.keepFocus(this.ways, () => {
      this.ways.replaceChildren(...event.ways.map(article),
        button("Close", () => this.send("close"), { ariaLabel: "Close the ways" }));
      this.ways.hidden = !event.ways.length;
    });
  }

  on_word(event) {
    this.paper.found = [event.start, event.end];
    const take = (word) => {
      this.hideWord();
      this.send("take_word", { start: event.start, word, old: event.text });
    };
    const label = (word) => (word === "<|end|>" ? t("the end") : readable(word));
    const others = event.others.map(([word, share]) =>
      button(verbatim(`${label(word)} ${percent(share)}`), () => take(word)));
    this.word.hidden = false;
    this.word.ariaLabel = `${t("Other words")}: ${event.text}`;
    const fact = `“${readable(event.text)}”: ${percent(event.p)}. ${t("Instead:")}`;
    this.word.replaceChildren(h("span", {}, verbatim(fact)),
      ...others, button("Close", () => this.hideWord()));
    this.redraw();
  }

}

export default {
  render({ model, el }) {
    const desk = new Desk(model, el);
    return () => desk.close();
  },
};
