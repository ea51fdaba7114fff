// The page of the writer's desk (golpo/desk.py): it sends {do: name, …} and shows what comes back.
// golpo/studio.py joins desk_text.js and desk_controls.js before it.

const NARROW = 47.5; // rem, as in desk.css
const ANSWER_WITHIN = 20_000; // milliseconds
const RECONNECT_WITHIN = 5_000;
const NEXT_WORD_WITHIN = 60_000;
// What changes the text. Until the kernel has done it, the page takes no typing: it would be lost.
const CHANGES = ["go", "retry", "undo", "redo", "new", "open", "delete", "take", "take_word"];
let pages = 0;

const readable = (word) => word.replaceAll("\n", "↵").trim() || t("space");
// A title as golpo/desk.py keeps it.
const trimmed = (title) => title.trim().replace(/\s+/g, " ");
const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

class Desk extends DeskControls {
  constructor(model, el) {
    super();
    labels = model.get("labels");
    this.model = model;
    this.id = `golpo-${++pages}-${Math.random().toString(36).slice(2, 8)}`;
    this.timers = {};
    this.paper = new Paper(() => this.typed(), (at) => this.placed(at));
    this.facts = { state: "ready" };
    this.sentence = "";
    this.requests = 0;
    this.asked = "hello"; // the newest change that the kernel has not done yet, or null
    this.silent = false; // the kernel has not answered
    this.sent = 0; // messages; golpo/desk_inbox.py handles them in this order
    this.lost = false; // the kernel that had the story is gone
    this.el = el;
    el.classList.add("golpo");
    this.build();
    this.paper.area.readOnly = this.title.readOnly = true; // until the story is here
    this.listener = (message, buffers) => this.receive(message, buffers ?? []);
    model.on("msg:custom", this.listener);
    this.reconnect = () => this.askAgain();
    model.on("comm_live_update", this.reconnect);
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
      this.asked = message.request = `${this.id}-${++this.requests}`;
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
    this.send("hello");
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
    if ("+" in event) this.append(event);
    else if ("w" in event) event.w.forEach(([n, words]) => this.wayTexts[n].append(words));
    else this[`on_${event.ev}`]?.(event, buffers);
    if (this.facts.state === "writing") this.expectAnswer(NEXT_WORD_WITHIN, true);
  }

  on_done(event) {
    if (event.request !== this.asked) return;
    this.asked = null;
    this.showState();
  }

  on_all(event) {
    this.asked = null;
    if (!this.fields) this.buildForm(event);
    this.fill(event.values);
    this.speaker.textContent = event.speaker;
    this.layer.max = event.layers - 1;
    this.head.max = event.heads - 1;
    this.paper.set(event.text);
    this.on_state(event);
  }

  on_text(event) {
    if (event.source !== this.id) {
      this.paper.replace(event.at, event.cut, event.new);
      if (!this.word.hidden) this.hideWord();
    }
    this.on_state(event);
  }

  on_state(event) {
    const wrote = this.facts.state === "writing";
    this.facts = { ...this.facts, ...event };
    if (event.marks && !this.timers.edit) this.paper.marks = event.marks;
    this.showTitle(event.title);
    this.showState();
    this.redraw();
    if (wrote && event.state !== "writing") {
      this.speak("", true);
      this.askBits();
    }
  }

  // A space that was typed last stays: more may follow.
  showTitle(title) {
    const typing = document.activeElement === this.title && trimmed(this.title.value) === title;
    if (!this.timers.title && !typing) this.title.value = title;
  }

  append(event) {
    const seen = this.foot.getBoundingClientRect().bottom <= window.innerHeight + 40;
    this.paper.append(event["+"]);
    if (seen) this.foot.scrollIntoView({ block: "nearest" }); // Stop stays in view
    this.speak(event["+"]);
    if ("rate" in event) {
      this.facts = { ...this.facts, ...event };
      this.showTitle(event.title);
      this.showState();
    }
  }

  showState() {
    const { why, tokens, rate, undo, redo, retry } = this.facts;
    const state = this.lost ? "stopped" : this.facts.state;
    const writing = state === "writing";
    const name = t({ ready: "Ready", writing: "Writing", stopped: "Stopped" }[state]);
    const words = this.paper.local.trim().split(/\s+/).filter(Boolean).length;
    const speed = tokens ? `${tokens} ${t("tokens")}, ${rate} ${t("a second")}` : "";
    const ended = state === "ready" && tokens ? t(why) : "";
    this.state.textContent = [name, ended, speed, `${words} ${t("words")}`]
      .filter(Boolean).join(" · ");
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
    if (edit) this.send("edit", { ...edit, source: this.id });
  }

  sendTitle() {
    const title = trimmed(this.title.value);
    if (title !== trimmed(this.facts.title ?? "")) this.send("title", { title });
  }

  askBits() {
    if (this.shade.firstChild.checked && this.facts.state !== "writing") this.send("surprise");
    else if (this.paper.bits.length) {
      this.paper.bits = [];
      this.redraw();
    }
  }

  placed(at) {
    this.buttons.here.hidden = this.facts.state === "writing" || this.paper.cursor() === null;
    if (at === null || this.facts.state === "writing") return;
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
    if (event.key === "Escape") name = this.facts.state === "writing" ? "stop" : "hide";
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

  on_message(event) { this.say(event.text); }

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
      h("span", { className: "small" }, label));
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
