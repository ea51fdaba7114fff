"""Figures over stories: hand-made stories whose figures can be counted, models whose figures are
known, and a corpus that is larger than the memory that evaluating it may take.
"""

import json
import math
import subprocess
import sys

import pytest
import torch

from golpo import evaluation
from golpo.checkpoint import save_checkpoint
from golpo.corpus import load_corpus
from golpo.evaluation import (
    bits_per_byte,
    continue_openings,
    evaluate,
    generate_batch,
    prompt_adherence,
)
from golpo.paths import PROJECT_DIR
from golpo.runs import start_fresh_training
from golpo.story_measures import (
    TrainingText,
    genres_of,
    measure_stories,
    name_persistence,
    stems,
)
from golpo.vocabulary import decode_stories
from golpo_utils import GPTModel, encode, get_tokenizer, story_opening

TINY = {
    "vocab_size": 300,
    "context_length": 48,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


def story(title, prose, end="<|end|>"):
    return f"<|start|>\n<|title|>{title}</|title|>\n\n{prose}\n{end}"


def save_tiny(folder, size=300, context_length=48):
    """A checkpoint whose model finds all tokens equally likely."""
    model = GPTModel({**TINY, "vocab_size": size, "context_length": context_length})
    torch.nn.init.zeros_(model.out_head.weight)
    save_checkpoint(model, None, 0, 0, [], [], [], 0, folder, f"{size}.pt")
    return folder / f"{size}.pt"


def test_figures_of_stories_counted_by_hand():
    stories = [
        story("A", "one two three four one two three four"),  # 5 runs of four words, 4 distinct
        story("A", "the red fox ran over the old stone bridge at night"),  # 4 runs of eight
        story("B", "once there was a king", end=""),
    ]
    known = "the red fox ran over the old stone wall"  # one of the 4 runs, and another one
    figures = measure_stories(stories, TrainingText([known], stories))
    assert figures["stories"] == 3
    assert figures["ended"] == pytest.approx(2 / 3)
    assert figures["titled"] == 1
    assert figures["distinct_titles"] == 2
    assert figures["distinct_openings"] == 3
    assert figures["repeated_4grams_worst"] == pytest.approx(1 / 5)
    assert figures["repeated_4grams_median"] == 0
    assert figures["verbatim_8grams"] == pytest.approx(1 / 5)  # 1 + 4 + 0 runs of eight, 1 known
    assert figures["verbatim_stories"] == 0


def test_words_of_a_script_with_combining_marks_stay_whole():
    """Bengali vowel signs are marks, not letters; the script has no capitals to know names by."""
    assert stems("চাঁদের আলো") == {"চাঁদে"}
    assert stems("রাতে চাঁদে মেঘ।") == {"চাঁদে", "রাতে"}
    figures = measure_stories([story("চাঁদের আলো", "রাতে চাঁদে মেঘ। রাতে চাঁদে মেঘ।")])
    assert "names_last" not in figures
    assert figures["repeated_4grams_worst"] == 0
    assert "names_last" in measure_stories([story("The Moon", "Mira slept.")])


def test_a_story_of_the_training_text_is_found_however_it_is_spaced():
    copy = story("New", "Once there  was\na king who slept.")
    other = story("Old", "Once there was a king who woke.")
    training = TrainingText([story("Old", "Once there was a king who slept.")], [copy, other])
    assert measure_stories([copy, other], training)["verbatim_stories"] == 1


def test_of_the_training_text_only_what_is_sought_is_kept():
    sought = [story("A", "one two three four five six seven eight nine")]
    corpus = (story(str(n), f"{n} two three four five six seven eight nine") for n in range(5000))
    training = TrainingText(corpus, sought)
    assert len(training.runs) == 1
    assert not training.stories


def test_a_name_lasts_to_its_last_mention():
    prose = "A girl called Mira ran. Then Mira slept. Nobody woke her all night."
    assert name_persistence(prose) == pytest.approx(7 / 13)
    assert name_persistence("no one here has a name at all") is None


def test_stories_that_use_their_title_are_known_from_those_that_do_not(monkeypatch):
    tokenizer = get_tokenizer(300)
    titles = ["The Golden Hammer", "Winter Harvest", "Seven Sparrows"]
    asked = []

    def use_title(model, tokenizer, openings, **_):
        asked.extend(tokenizer.decode(opening) for opening in openings)
        return [f"It was about {title.upper()}s, long ago." for title in titles]

    monkeypatch.setattr(evaluation, "continue_openings", use_title)
    figures = prompt_adherence(None, tokenizer, titles)
    assert figures == {"title_words": 1.0, "title_words_by_chance": 0.0}
    assert asked == [f"<|start|>\n<|title|>{title}</|title|>\n\n" for title in titles]

    def ignore_title(model, tokenizer, openings, **_):
        return ["The golden winter sparrows."] * len(openings)

    monkeypatch.setattr(evaluation, "continue_openings", ignore_title)
    figures = prompt_adherence(None, tokenizer, titles)
    assert figures["title_words"] == figures["title_words_by_chance"] == pytest.approx(0.5)


def test_openings_of_several_lengths_are_continued_as_each_alone():
    """The first row of each batch has the seed of a story that is generated by itself."""
    torch.manual_seed(3)
    tokenizer = get_tokenizer(300)
    model = GPTModel(TINY)
    openings = [story_opening(tokenizer, words) for words in ("One", "Three", "Two", "xyzq")]
    assert [len(opening) for opening in openings] == [5, 6, 5, 6]
    options = {"temperature": 1.0, "top_k": 20}
    stories = continue_openings(model, tokenizer, openings, 12, seed=5, **options)
    for number, seed in ((0, 5), (2, 6), (1, 7), (3, 8)):
        alone = continue_openings(model, tokenizer, [openings[number]], 12, seed=seed, **options)
        assert stories[number] == alone[0]
        assert stories[number].startswith(tokenizer.decode(openings[number]))


def test_genres_are_read_from_title_lines_and_kept_by_a_model_that_learned_them(tmp_path):
    sea = [
        story(f"Sea tale: Wave {n}", f"The ship sailed {n} days over salt water, wave upon wave.")
        for n in range(60)
    ]
    snow = [
        story(
            f"Snow tale: Flake {n}",
            f"The sledge slid {n} nights through white frost, flake upon flake.",
        )
        for n in range(60)
    ]
    both = [*sea, *snow, story("Plain", "No genre.")]
    assert set(genres_of(lambda: both)) == {"Sea tale", "Snow tale"}
    assert genres_of(lambda: sea[:19]) == {}
    corpus = tmp_path / "two kinds.txt"
    pairs = zip(sea, snow, strict=True)
    corpus.write_text("\n".join(text for pair in pairs for text in pair), encoding="utf-8")
    start_fresh_training(
        config={**TINY, "vocab_size": 512},
        data_path=corpus,
        checkpoint_dir=tmp_path / "ck",
        device="cpu",
        num_epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        precision="fp32",
        sample_tokens=0,
    )
    output = tmp_path / "new folder" / "figures.json"
    figures = evaluate(tmp_path / "ck", stories=4, max_new_tokens=60, output=output)
    assert figures["genre_kept"] >= 0.9
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert saved["reference"]["ended"] == 1
    assert len(saved["generated"]) == 4
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_genre_is_known_from_the_first_of_many_stories():
    texts = [story(f"Sea tale: {n}", "wave " * 100) for n in range(40)]
    found = genres_of(lambda: texts, most_characters=1000)
    assert 1000 <= len(found["Sea tale"]) < 1600
    many = [story(f"Kind {n}: A", "text") for n in range(30) for _ in range(20 + n)]
    assert set(genres_of(lambda: many, most_genres=2)) == {"Kind 28", "Kind 29"}


@pytest.mark.parametrize("size", [300, 50257, 50261])
def test_bits_per_byte_are_those_of_the_predicted_text(tmp_path, size):
    """A model of equal logits spends log2(v) bits on each predicted token, counted here anew."""
    tokenizer = get_tokenizer(size)
    corpus = load_corpus(tokenizer=tokenizer, validation_fraction=0.02)
    text = tokenizer.decode(corpus.val_ids.tolist())
    tokens = 0
    size_in_bytes = 0
    for one in text.split("<|start|>")[1:]:
        # A marker that is one token has nothing before it; the rest of a story is predicted.
        predicted = encode(one if size != 50257 else "<|start|>" + one, tokenizer)
        tokens += len(predicted)
        size_in_bytes += len(tokenizer.decode(predicted).encode())
    if size == 50257:  # without markers the whole text is one row of tokens
        tokens -= 1
        size_in_bytes -= len(tokenizer.decode(corpus.val_ids[:1].tolist()))
    bits = math.log2(size) * tokens
    found = bits_per_byte(math.log(size), tokens, corpus.val_ids, tokenizer)
    assert found == pytest.approx(bits / size_in_bytes, rel=1e-9)


def test_evaluate_reports_the_bits_of_each_byte_that_was_predicted(tmp_path):
    figures = evaluate(save_tiny(tmp_path), stories=1, max_new_tokens=2)
    tokenizer = get_tokenizer(300)
    text = tokenizer.decode(load_corpus(tokenizer=tokenizer).val_ids.tolist())
    stories = text.split("<|start|>")[1:]
    tokens = sum(len(encode(one, tokenizer)) for one in stories)
    size_in_bytes = sum(len(one.encode()) for one in stories)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(300) * tokens / size_in_bytes, 1e-4)


@pytest.mark.parametrize("size", [300, 50257], ids=["markers are tokens", "markers are texts"])
def test_stories_are_read_one_by_one_whatever_the_tokenizer(size):
    tokenizer = get_tokenizer(size)
    texts = [story(f"T{n}", f"Fräulein {n} গল্প 猫 slept.") + "\n" for n in range(20_000)]
    ids = torch.tensor(encode("".join(texts), tokenizer))
    assert len(ids) > 2**18
    assert list(decode_stories(ids, tokenizer)) == texts


def test_a_model_with_more_ids_than_its_tokenizer_is_evaluated(tmp_path):
    """A vocabulary padded to 50304, as nanoGPT has it; the last 43 ids are no token."""
    checkpoint = save_tiny(tmp_path, 50304)
    corpus = tmp_path / "stories.txt"
    corpus.write_text("\n".join(story(f"T{n}", f"A fox slept {n} days.") for n in range(30)))
    figures = evaluate(checkpoint, corpus, stories=2, max_new_tokens=30, temperature=50.0)
    assert figures["val_loss"] == pytest.approx(math.log(50304), rel=1e-4)
    model = GPTModel({**TINY, "vocab_size": 50304})
    texts = generate_batch(model, get_tokenizer(50304), 4, max_new_tokens=40, temperature=50.0)
    assert len(texts) == 4


def test_a_loss_of_which_the_perplexity_overflows_is_reported(tmp_path, capsys):
    """A: with few digits, and not with the three hundred that it has."""
    model = GPTModel(TINY)
    torch.nn.init.normal_(model.out_head.weight, std=3000.0)
    save_checkpoint(model, None, 0, 0, [], [], [], 0, tmp_path, "loud.pt")
    figures = evaluate(tmp_path / "loud.pt", stories=1, max_new_tokens=2)
    assert figures["val_loss"] > 710
    assert figures["perplexity"] == pytest.approx(math.exp(700))
    assert "1.014e+304" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"val_loss": 1}', "[" * 100_000])
def test_a_file_that_is_no_evaluation_is_named(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match="other.json' has no figures of a checkpoint"):
        evaluate(tmp_path, compare_with=[tmp_path / "other.json"])


def test_evaluations_of_earlier_versions_are_compared_with(tmp_path, capsys):
    earlier = {"val_loss": 1.25, "by_people": {"titled": 1.0}, "told": ["A story."]}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    evaluate(
        save_tiny(tmp_path), stories=1, max_new_tokens=2, compare_with=[tmp_path / "earlier.json"]
    )
    heads, *rows = capsys.readouterr().out.splitlines()[-30:]
    table = [line for line in (heads, *rows) if "earlier" in line or line.startswith("val_loss")]
    assert table[0].split() == ["generated", "earlier", "reference"]
    assert table[1].split()[2] == "1.250"


MEASURE = """
import sys, golpo.evaluation
from golpo.inference import load_storyteller
def peak():
    text = open("/proc/self/status").read()
    return int(text.split("VmHWM:")[1].split()[0]) // 1024
load_storyteller(sys.argv[1])
before = peak()
golpo.evaluation.evaluate(sys.argv[1], sys.argv[2], stories=2, max_new_tokens=20)
print("beyond", peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_evaluating_a_large_corpus_takes_at_most_500_mb(tmp_path, record_figure):
    """30 MB of text in which hardly a run of words occurs twice."""
    path = tmp_path / "large.txt"
    words = [f"{a}{b}" for a in "bcdfghklmnprstvw" for b in ("a", "elo", "irum", "ost", "unda")]
    chance = torch.Generator().manual_seed(1)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(1600):
            picked = torch.randint(len(words), (6000,), generator=chance).tolist()
            file.write(story(f"Tale: {number}", " ".join(words[one] for one in picked)) + "\n")
    assert path.stat().st_size > 30e6
    command = [sys.executable, "-c", MEASURE, str(save_tiny(tmp_path)), str(path)]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    beyond = int(done.stdout.split()[-1])
    record_figure("evaluate, a corpus of 30 MB", f"{beyond} MiB beyond the model")
    assert beyond < 500
