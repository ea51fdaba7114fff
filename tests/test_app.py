"""The page docs/app/ in headless Chromium, without a network: it loads, writes, stops, refuses."""

import functools
import http.server
import json
import re
import shutil
import threading

import pytest
import torch

from golpo.export_onnx import export_onnx
from golpo.inference import load_storyteller
from golpo.paths import PROJECT_DIR
from golpo_utils import (
    END,
    GPTModel,
    encode,
    generate,
    get_tokenizer,
    story_opening,
    stream_story,
)

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is missing")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]

MODEL = PROJECT_DIR / "docs" / "app" / "model"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
OPENINGS = [  # (title, opening)
    ("", "Once upon a time, a little fox"),
    ("The Lost Kite", ""),
    ("", "The old lighthouse keeper"),
    ("The Moon", "One night, a boy"),
    ("", "Mia had a red ball.\n\nOne day"),
]
TOKENS = 100
# The storyteller as the page sees it: what it says is noted, and a test can speak in its place.
SPY = """
window.heard = [];
window.Worker = class extends Worker {
    constructor(...all) {
        super(...all);
        window.storyteller = this;
        this.addEventListener("message", ({ data }) => window.heard.push(data));
    }
};
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own server of files, without its log."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(QuietHandler, directory=PROJECT_DIR / "docs")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address):
    """The page at a phone's width, with the bundled storyteller; nothing else can be reached."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, accept_downloads=True)
    asked = []
    context.route(
        lambda url: not url.startswith(address),
        lambda route: (asked.append(route.request.url), route.abort()),
    )
    page = context.new_page()
    page.set_default_timeout(45_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.add_init_script(SPY)
    page.goto(f"{address}/app/")
    page.wait_for_selector("#write:enabled")
    yield page
    assert not problems
    assert all(url.startswith(("data:", "blob:")) for url in asked), asked
    context.close()


def choose(page, **values):
    """Set fields by their ids; sliders, too."""
    for name, value in values.items():
        page.evaluate(
            """([id, value]) => {
                const field = document.getElementById(id);
                field.value = value;
                field.dispatchEvent(new Event("input"));
            }""",
            [name.replace("_", "-"), str(value)],
        )


def write(page):
    """Write a story to its end → what the page knows about it."""
    page.evaluate("window.lastStory = null")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("window.lastStory")
    return page.evaluate("window.lastStory")


def test_the_page_writes_what_golpo_writes(page):
    """Greedy, five openings, up to 100 tokens or the end: the tokens of `golpo generate`."""
    model, tokenizer, *_ = load_storyteller("bundled")
    end = tokenizer.encode_single_token(END)
    choose(page, temperature=0, max_tokens=TOKENS)
    for title, opening in OPENINGS:
        ids = story_opening(tokenizer, opening, title or None)
        choose(page, title=title, opening=opening)
        told = write(page)
        ours = generate(
            model, torch.tensor([ids]), TOKENS, model.config["context_length"], eos_id=end
        )
        ours = [token for token in ours[0, len(ids) :].tolist() if token != end]
        assert told["tokens"] == ours, (title, opening)
        words = tokenizer.decode([t for t in told["tokens"] if t not in special_ids(tokenizer)])
        assert words.strip() in page.inner_text("#story"), "the page shows other words"


def show(page, opening, text):
    """The heading, the prose and the downloaded text of a story that the model might write."""
    choose(page, title="", opening=opening, max_tokens=1000, temperature=0)
    page.evaluate(
        """([text]) => {
            const post = storyteller.postMessage;
            let run = 0;
            storyteller.postMessage = (order) => (run = order.run);
            document.getElementById("write").click();
            storyteller.postMessage = post;
            const answer = (data) =>
                storyteller.dispatchEvent(new MessageEvent("message", { data }));
            for (const piece of text) answer({ kind: "piece", run, text: piece, count: 1 });
            answer({ kind: "done", run, text: "", reason: "end", tokens: [1], seconds: 1 });
        }""",
        [text],
    )
    with page.expect_download() as waiting:
        page.click("#download")
    downloaded = waiting.value.path().read_text(encoding="utf-8")
    return page.text_content("#heading"), page.text_content("#prose"), downloaded


FOX = "Once upon a time, a little fox"


@pytest.mark.parametrize(
    ("opening", "text", "heading", "prose"),
    [
        (FOX, " ran. <|title|>The Owl and a long story", "", " ran. The Owl and a long story"),
        (FOX, " ran. <|title|>The Owl</|title|>\n\nIt slept.", "", " ran. The Owl\n\nIt slept."),
        (FOX, " ran.</|title|> It slept.", "", " ran. It slept."),
        (FOX, " ran. <|tit", "", " ran."),
        ("", "\n<|title|>The Owl</|title|>\n\nIt slept.", "The Owl", "It slept."),
        ("", "<|title|>The Owl</|title|>\n\nIt <|title|>s</|title|>.", "The Owl", "It s."),
        ("", "<|title|>The Owl\n\nIt slept.\nThen it woke.", "The Owl", "It slept.\nThen it woke."),
        ("", "<|title|>The Owl", "The Owl", ""),
    ],
)
def test_only_what_comes_first_is_a_title(page, opening, text, heading, prose):
    """And no word of the story is lost, whatever markers stand in it."""
    shown = show(page, opening, text)
    assert shown[:2] == (heading, opening + prose)
    assert shown[2] == (f"{heading}\n\n" if heading else "") + f"{opening}{prose}\n"


def test_each_stop_belongs_to_its_run(page):
    """Write, Stop, Write, Stop, before the storyteller has read the first of them."""
    choose(page, title="", opening=FOX, temperature=1, top_k=0, min_p=0, max_tokens=1000, seed=1)
    page.evaluate(
        """() => {
            heard.length = 0;
            const order = ["write", "stop", "write", "stop"];
            for (const id of order) document.getElementById(id).click();
        }"""
    )
    page.wait_for_function("heard.filter(({ kind }) => kind === 'done').length === 2")
    answers = page.evaluate("heard")
    done = [answer for answer in answers if answer["kind"] == "done"]
    assert [answer["reason"] for answer in done] == ["stopped", "stopped"]
    assert max(len(answer["tokens"]) for answer in done) <= 1
    choose(page, max_tokens=20)
    assert write(page)["count"] > 5


def test_the_error_of_a_stopped_run_does_not_end_the_next_one(page):
    choose(page, title="", opening=FOX, temperature=0, max_tokens=20)
    page.evaluate(
        """() => {
            window.lastStory = null;
            const post = storyteller.postMessage;
            let run = 0;
            storyteller.postMessage = (order) => (run = order.run);
            document.getElementById("write").click();
            document.getElementById("stop").click();
            storyteller.postMessage = post;
            document.getElementById("write").click();
            const data = { kind: "error", during: "write", run, text: "No memory.", kept: true };
            storyteller.dispatchEvent(new MessageEvent("message", { data }));
        }"""
    )
    page.wait_for_function("window.lastStory")
    assert page.inner_text("#message") == ""


def special_ids(tokenizer):
    return {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}


def test_a_seed_gives_the_same_story_again(page):
    choose(page, title="", opening="A small cat", temperature=1, max_tokens=40, seed=3)
    first = write(page)
    assert write(page)["text"] == first["text"]
    choose(page, seed=4)
    assert write(page)["text"] != first["text"]
    assert page.inner_text("#status").endswith("seed 4")


def test_stop_and_escape(page):
    """The story stands still 0.2 s after Stop, and the next one begins."""
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        choose(page, title="", opening="One day", temperature=1, top_k=0, min_p=0, max_tokens=1000)
        page.click("#write")
        page.wait_for_function("document.getElementById('prose').innerText.length > 40")
        stop()
        page.wait_for_timeout(200)
        text = page.inner_text("#story")
        assert "stopped · seed" in page.inner_text("#status")
        page.wait_for_timeout(300)
        assert page.inner_text("#story") == text
        assert page.is_enabled("#write")


def test_no_half_character_is_shown(page):
    """Emoji and Bengali are several tokens each in this vocabulary."""
    choose(page, title="", opening="গল্প 🐘", temperature=0, max_tokens=20)
    write(page)
    assert "গল্প 🐘" in page.inner_text("#story")
    choose(page, temperature=1.5, top_k=0, min_p=0, max_tokens=60, seed=1)
    page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => seen.push(document.getElementById("prose").textContent))
                .observe(document.getElementById("prose"), {childList: true, subtree: true});
        }"""
    )
    final = write(page)["text"]
    seen = page.evaluate("window.seen")
    assert len(seen) > 3
    assert all(final.count("\ufffd") >= text.count("\ufffd") for text in seen)


def test_a_file_that_is_no_storyteller_is_refused_in_a_sentence(page, tmp_path):
    """And the storyteller that was there before goes on."""
    config = json.loads((MODEL / "config.json").read_text())
    cases = {
        "notes.txt": (b"hello", "There is no .onnx file in what you dropped, only notes.txt"),
        "model.onnx": (b"not a model", "There is no tokenizer.json beside model.onnx"),
    }
    for name, (content, sentence) in cases.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content)
        page.set_input_files("#folder", folder)
        page.wait_for_function("document.getElementById('message').textContent")
        assert sentence in page.inner_text("#message")
    shutil.copy(MODEL / "tokenizer.json", folder)
    for given, sentence in (
        (None, "There is no config.json beside model.onnx; drop the whole folder."),
        ({**config, "n_positions": None}, "config.json has no number n_positions"),
        ({"model_type": "llama"}, "config.json has no number n_positions"),
        ([], "config.json has no number n_positions"),
        (config, "model.onnx is not a model that ONNX Runtime can read"),
    ):
        if given is not None:
            (folder / "config.json").write_text(json.dumps(given))
        page.set_input_files("#folder", folder)
        page.wait_for_function(
            "text => document.getElementById('message').textContent.includes(text)", arg=sentence
        )
    choose(page, title="", opening="A dog", temperature=0, max_tokens=20)
    assert write(page)["count"] > 5
    assert page.inner_text("#message") == ""


def test_a_folder_with_a_storyteller_is_loaded(page, tmp_path):
    for name in ("tokenizer.json", "config.json", "model.onnx.gz"):
        shutil.copy(MODEL / name, tmp_path)
    page.set_input_files("#folder", tmp_path)
    page.wait_for_function(
        "document.getElementById('status').textContent.includes('model.onnx.gz')"
    )
    choose(page, title="The Bee", opening="", temperature=0, max_tokens=20)
    assert write(page)["text"].startswith("<|title|>The Bee</|title|>")


def test_a_folder_of_golpo_export_is_loaded(page, tmp_path):
    """The model lies in a folder of its own there, in fp32."""
    pytest.importorskip("onnxscript", reason="onnxscript is missing")
    export_onnx(*load_storyteller("bundled")[:2], tmp_path)
    page.set_input_files("#folder", tmp_path)
    page.wait_for_function("document.getElementById('status').textContent.includes('model.onnx')")
    choose(page, title="The Bee", opening="", temperature=0, max_tokens=20)
    assert write(page)["count"] > 0


def model_that_knows(tokenizer, opening, words):
    """A small model that writes `words` after `opening` when it is greedy."""
    torch.manual_seed(0)
    config = {"vocab_size": tokenizer.n_vocab, "context_length": 128, "emb_dim": 16, "n_heads": 2}
    model = GPTModel({**config, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False})
    ids = torch.tensor([opening + encode(words, tokenizer)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        logits = model(ids[:, :-1])[0, len(opening) - 1 :]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, len(opening) :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("title", ["", "The Mill"])
def test_a_vocabulary_without_markers_has_them_as_text(page, tmp_path, title):
    """The original program's, of 50257 tokens: a story begins and ends as it does in Python."""
    pytest.importorskip("onnxscript", reason="onnxscript is missing")
    tokenizer = get_tokenizer(50257)
    opening = story_opening(tokenizer, "Once upon", title)
    words = " a <|time there was |> a cat.<|end|> Nobody sees"
    model = model_that_knows(tokenizer, opening, words)
    shown = list(stream_story(model, tokenizer, "Once upon", title=title, temperature=0))
    assert "".join(shown) == words.partition(END)[0]
    export_onnx(model, tokenizer, tmp_path)
    page.set_input_files("#folder", tmp_path)
    page.wait_for_function("document.getElementById('status').textContent.includes('model.onnx')")
    choose(page, title=title, opening="Once upon", temperature=0, max_tokens=400)
    page.evaluate("heard.length = 0")
    told = write(page)
    assert told["reason"] == "end"
    ours = generate(model, torch.tensor([opening]), len(told["tokens"]), 128)
    assert told["tokens"] == ours[0, len(opening) :].tolist()
    assert END not in tokenizer.decode(told["tokens"][:-1])
    pieces = page.evaluate("heard.map(({ text }) => text)")
    assert "".join(pieces) == "".join(shown)
    assert page.text_content("#prose") == "Once upon" + "".join(shown)
    assert page.text_content("#heading") == title
    page.evaluate("document.getElementById('bundled').click()")
    page.wait_for_function("document.getElementById('status').textContent.includes('bundled')")


def drop(page, selector, kind):
    """Drop text or a file on an element → whether the page leaves it to the browser."""
    return page.evaluate(
        """([selector, kind]) => ["dragover", "drop"].map((type) => {
            const dataTransfer = new DataTransfer();
            if (kind === "text") dataTransfer.setData("text/plain", "a word");
            else dataTransfer.items.add(new File(["hello"], "notes.txt"));
            const event = new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true });
            return document.querySelector(selector).dispatchEvent(event);
        })""",
        [selector, kind],
    )


def test_only_files_that_are_dropped_are_the_page_s_business(page):
    """Text that is dragged into a field is the browser's."""
    assert drop(page, "#opening", "text") == [True, True]
    assert "dropping" not in (page.get_attribute("body", "class") or "")
    assert drop(page, "#opening", "file") == [False, False]
    page.wait_for_function("document.getElementById('message').textContent.includes('.onnx')")
    choose(page, title="", opening="A dog", temperature=0, max_tokens=20)
    page.wait_for_selector("#write:enabled")
    assert write(page)["count"] > 0


def test_a_story_is_downloaded_as_text(page):
    choose(page, title="The Red Hat", opening="Once", temperature=0, max_tokens=20)
    write(page)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "The-Red-Hat.txt"
    text = waiting.value.path().read_text(encoding="utf-8")
    assert text.startswith("The Red Hat\n\nOnce")
    assert "<|" not in text


def open_settings(page):
    """On a phone they are closed at first."""
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")


def test_a_phone_need_not_scroll_sideways(page):
    open_settings(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_each_control_has_a_label(page):
    """As Chromium's accessibility tree names them for a screen reader."""
    open_settings(page)
    tree = page.locator("main").aria_snapshot()
    for name in ("Temperature", "Top-k", "Top-p", "Min-p", "Max tokens"):
        assert f'slider "{name}"' in tree, tree
    assert re.search(r'textbox "Title', tree) and re.search(r'textbox "Opening', tree)
    assert 'spinbutton "Seed"' in tree
    assert "- status" in tree


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page, scheme):
    page.emulate_media(color_scheme=scheme)
    names = ["h1", "header p", ".hint", "small", "#write", "#prose", "#status", ".own", "#message"]
    pairs = page.evaluate(
        """(names) => names.map((name) => {
            const text = document.querySelector(name);
            let ground = text;
            const colour = (one) => getComputedStyle(one).backgroundColor;
            while (colour(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
            return [name, getComputedStyle(text).color, colour(ground)];
        })""",
        names,
    )
    for name, ink, paper in pairs:
        low, high = sorted((luminance(ink), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ink, paper)


def test_the_files_of_the_page_are_small_and_belong_to_the_bundled_model():
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16e6
    vendor = MODEL.parent / "vendor"
    assert sum(path.stat().st_size for path in vendor.iterdir()) <= 12e6
    bundled = PROJECT_DIR / "voice"
    assert (MODEL / "tokenizer.json").read_bytes() == (bundled / "tokenizer.json").read_bytes()
    exported = json.loads((bundled / "config.json").read_text())["golpo_kothok"]["config"]
    told = json.loads((MODEL / "config.json").read_text())["golpo_kothok"]["config"]
    assert told == exported, "run: python docs/app/make_model.py"
