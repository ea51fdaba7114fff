// The controls beside the text of the writer's desk: settings, shelf, taste, inspector. The page
// itself is desk.js, which golpo/studio.py joins to this file.

const KINDS = { epub: "EPUB", html: "HTML, for printing", md: "Markdown", txt: "plain text" };

const button = (label, action, props = {}) =>
  h("button", { type: "button", onclick: action, ...props }, label);

const fold = (title, open, ...children) =>
  h("details", { open }, h("summary", {}, title), ...children);

class DeskControls {
  buildForm(event) {
    this.fields = {};
    const sliders = { true: [], false: [] };
    for (const [name, label, low, high, step, help, inView] of event.sliders) {
      const value = h("output", {});
      const range = h("input", {
        type: "range", min: low, max: high, step, ariaLabel: label, title: help,
        oninput: () => { value.textContent = range.value; this.formChanged(name); },
      });
      this.fields[name] = { get: () => Number(range.value),
        set: (v) => { range.value = v; value.textContent = v; } };
      const head = h("span", { className: "head" }, label, value);
      sliders[inView].push(h("div", { className: "slider" }, head, range,
        h("span", { className: "small" }, help)));
    }
    const field = (name, label, hint, tag = "input") => {
      const node = h(tag, { placeholder: hint, oninput: () => this.formChanged(name) });
      this.fields[name] = { get: () => node.value, set: (v) => { node.value = v; } };
      return h("label", { className: "field" }, label, node);
    };
    const beams = field("num_beams", "Beams", "", "select");
    beams.lastChild.append(...event.beams.map((value) => h("option", { value }, String(value))));
    this.fields.num_beams.get = () => Number(beams.lastChild.value);
    this.beams = h("div", {}, beams, h("p", { className: "small" },
      "Above 1, the likeliest passage is searched for: good for one right answer, bad for stories."));
    const length = field("length", "Length", "", "select");
    length.lastChild.append(...["", ...event.lengths].map(
      (value) => h("option", { value }, value || "any")));
    this.presets = h("div", { className: "row", role: "group", ariaLabel: "Presets" });
    const name = h("input", { ariaLabel: "Name of a preset", placeholder: "name" });
    const keep = button("Save as preset", () => this.send("save_preset", { name: name.value }));
    const forget = button("Delete it", () => this.send("delete_preset", { name: name.value }));
    const number = h("select", { ariaLabel: "How many" }, ...["2", "3", "4", "styles"].map((v) =>
      h("option", { value: v }, v === "styles" ? "each preset" : v)));
    const beside = button("Write side by side", () => this.send("ways",
      { count: Number(number.value) || number.value, short: false }));
    const more = fold("More", false, ...sliders.false,
      h("div", { className: "row" }, name, keep, forget));
    const wishes = fold("What the story shall have", false, field("hero", "Hero", "Hanna"),
      field("words", "Words", "lamp, owl"), length,
      h("p", { className: "small" }, "For a model that was trained with requests."));
    this.form.replaceChildren(this.presets, ...sliders.true, this.beams,
      field("note", "Note: what the model always sees", "Who, where, what must not be forgotten",
        "textarea"),
      h("div", { className: "row" }, beside, number),
      this.tint = this.toggle("Mark what the model wrote", true, () => this.redraw()),
      this.shade = this.toggle("Shade surprising words", false, () => this.askBits()),
      more, wishes);
    this.fill(event.values);
    this.showPresets(event);
  }

  toggle(label, checked, changed) {
    return h("label", { className: "toggle" },
      h("input", { type: "checkbox", checked, onchange: changed }), label);
  }

  buildShelf() {
    this.query = h("input", { type: "search", ariaLabel: "Search the shelf", placeholder: "Search",
      oninput: () => this.later("search",
        () => this.send("search", { words: this.query.value })) });
    this.rows = h("ul", { className: "rows" });
    this.kind = h("select", { ariaLabel: "Kind of file" }, ...Object.entries(KINDS).map(
      ([value, label]) => h("option", { value }, label)));
    const ask = (everything) => this.send("export", { kind: this.kind.value, everything });
    const copy = button("Copy", async () => {
      try {
        await navigator.clipboard.writeText(`${this.title.value}\n\n${this.paper.local}`.trim());
        this.say("Copied.");
      } catch {
        this.paper.area.select();
        this.say("The browser refuses; the story is selected, so press Ctrl+C.");
      }
    });
    return fold("Shelf", true, this.query, this.rows,
      h("div", { className: "row" }, this.kind, button("Export this story", () => ask(false)),
        button("Export all", () => ask(true)), copy));
  }

  buildTaste() {
    this.choices = h("p", { className: "small" });
    this.strength = h("input", { type: "range", min: 0, max: 1.5, step: 0.05, ariaLabel: "Taste",
      oninput: () => this.later("taste",
        () => this.send("strength", { value: Number(this.strength.value) })) });
    this.learn = button("Learn from my choices", () => this.send("learn"));
    return fold("Taste", false, this.choices, this.learn,
      h("label", { className: "slider" }, "Taste: how much it counts", this.strength));
  }

  buildInspector() {
    this.bars = h("div", {});
    this.picture = h("img", { alt: "Where the head looks, token by token", hidden: true });
    this.layer = h("input", { type: "number", min: 0, value: 0, ariaLabel: "Layer" });
    this.head = h("input", { type: "number", min: 0, value: 0, ariaLabel: "Head" });
    const look = button("Look", () => this.send("inspect",
      { layer: Number(this.layer.value), head: Number(this.head.value) }));
    return fold("Inspector: the next tokens, and where the model looks", false,
      h("div", { className: "row" }, "layer", this.layer, "head", this.head, look),
      this.bars, this.picture);
  }

  on_inspect(event, buffers) {
    this.bars.innerHTML = event.bars;
    URL.revokeObjectURL(this.picture.src);
    this.picture.src = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    this.picture.hidden = false;
  }

  on_taste(event) {
    const lacking = Math.max(0, event.least - event.choices);
    const rest = lacking ? ` ${t("Still needed:")} ${lacking}` : "";
    this.choices.textContent = `${t("Choices:")} ${event.choices}.${rest}`;
    this.strength.value = event.strength;
    this.strength.disabled = !event.has_taste;
    this.learn.disabled = lacking > 0;
  }

  // Of rows that the page has, only their places come: [start, end].
  on_shelf(event) {
    const had = this.shelf.rows;
    const parts = event.rows ?? [[0, had.length]];
    if (parts.some((part) => part[1] > had.length)) return this.askForAll();
    const rows = parts.flatMap((part) => Array.isArray(part) ? had.slice(...part) : part);
    this.shelf = { ...this.shelf, ...event, rows };
    const { open, more, skipped } = this.shelf;
    this.openWords = null;
    this.keepFocus(this.rows, () =>
      this.rows.replaceChildren(...rows.map((row) => this.shelfRow(row, open))));
    const notes = [];
    if (more) notes.push(`${t("More stories, to search for:")} ${more}.`);
    if (skipped) notes.push(`${t("Damaged files, skipped:")} ${skipped}.`);
    if (!rows.length) notes.push(t("No story here."));
    if (notes.length) this.rows.append(h("li", { className: "small" }, notes.join(" ")));
  }

  shelfRow(row, open) {
    const star = button(row.starred ? "★" : "☆",
      () => this.send("star", { name: row.name, starred: !row.starred }),
      { ariaPressed: String(row.starred), ariaLabel: `${t("Star")} ${row.title}` });
    const remove = button("Delete", () => {
      if (remove.dataset.asked) return this.send("delete", { name: row.name });
      remove.dataset.asked = "yes";
      remove.textContent = t("Really delete?");
    }, { ariaLabel: `${t("Delete")} ${row.title}`,
      onblur: () => { delete remove.dataset.asked; remove.textContent = t("Delete"); } });
    const date = new Date(row.date).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const title = button(verbatim(row.title), () => this.send("open", { name: row.name }),
      { className: "link", ariaCurrent: String(row.name === open) });
    const words = h("span", {}, verbatim(row.words ?? this.paper.words()));
    if (row.words === null) this.openWords = words; // as many as are shown at any moment
    return h("li", {}, star, h("div", {}, title,
      h("span", { className: "small" }, words, verbatim(` ${t("words")} · ${date}`))), remove);
  }

  formChanged(name) {
    this.changed = { ...this.changed, [name]: this.fields[name].get() };
    this.showBeams();
    this.later("form", () => this.sendForm());
  }

  sendForm() {
    const values = this.changed;
    this.changed = null;
    if (values) this.send("form", { values, source: this.id });
  }

  fill(values) {
    for (const [name, value] of Object.entries(values)) this.fields[name].set(value);
    this.showBeams();
  }

  // Beams sample nothing, so they belong to temperature 0, as the preset exact has it.
  showBeams() {
    this.beams.hidden = this.fields.temperature.get() > 0;
  }

  showPresets(event) {
    const choose = (values) => {
      this.fill(values);
      Object.keys(values).forEach((name) => this.formChanged(name));
    };
    this.presets.replaceChildren(...Object.entries(event.presets).map(
      ([name, values]) => button(name, () => choose(values))));
  }
}
