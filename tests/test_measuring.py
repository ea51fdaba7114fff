"""Figures over stories: hand-made stories whose figures can be counted by eye, and models whose obedience is known."""

import json

import pytest
import torch

import golpo_utils as golpo

TINY = {"vocab_size": 300, "context_length": 48, "emb_dim": 32, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}


def story(title, prose, end="<|end|>"):
    return f"<|start|>\n<|title|>{title}</|title|>\n\n{prose}\n{end}"


def test_figures_of_stories_counted_by_eye():
    stories = [story("A", "one two three four one two three four"),                # 5 runs of four, 4 distinct
               story("A", "the red fox ran over the old stone bridge at night"),    # 4 runs of eight, 1 known
               story("B", "once there was a king", end="")]
    known = "the red fox ran over the old stone wall"
    figures = golpo.measure_stories(stories, known)
    assert figures["stories"] == 3 and figures["ended"] == pytest.approx(2 / 3) and figures["titled"] == 1
    assert figures["distinct_titles"] == 2 and figures["distinct_openings"] == 3
    assert figures["repeated_4grams_worst"] == pytest.approx(1 / 5) and figures["repeated_4grams_median"] == 0
    assert figures["verbatim_8grams"] == pytest.approx(1 / 5)                       # 1 + 4 + 0 runs of eight, 1 known
    assert figures["verbatim_stories"] == 0


def test_a_name_lasts_to_its_last_mention():
    prose = "A girl called Mira ran. Then Mira slept. Nobody woke her all night."
    assert golpo.name_persistence(prose) is None or golpo.name_persistence(prose) == pytest.approx(7 / 13)
    assert golpo.name_persistence("no one here has a name at all") is None


def test_an_obedient_teller_is_told_from_a_deaf_one(monkeypatch):
    tokenizer = golpo.get_tokenizer(300)
    titles = ["The Golden Hammer", "Winter Harvest", "Seven Sparrows"]
    monkeypatch.setattr(golpo, "stream_story", lambda *_, title=None, **__: iter([f"It told of {title.upper()}s, long ago."]))
    obedient = golpo.measure_obedience(None, tokenizer, titles)
    assert obedient == {"title_words": 1.0, "title_words_by_chance": 0.0}
    monkeypatch.setattr(golpo, "stream_story", lambda *_, **__: iter(["The golden winter sparrows."]))
    deaf = golpo.measure_obedience(None, tokenizer, titles)
    assert deaf["title_words"] == deaf["title_words_by_chance"] == pytest.approx(0.5)


def test_genres_are_read_from_the_title_lines_and_obeyed_by_a_model_that_learned_them(tmp_path):
    """A model that learned two kinds of stories tells, when asked for a kind, that kind."""
    sea = [story(f"Sea tale: Wave {n}", f"The ship sailed {n} days over salt water, wave upon wave.") for n in range(60)]
    snow = [story(f"Snow tale: Flake {n}", f"The sledge slid {n} nights through white frost, flake upon flake.") for n in range(60)]
    assert set(golpo.genres_of([*sea, *snow, story("Plain", "No genre.")])) == {"Sea tale", "Snow tale"}
    assert golpo.genres_of(sea[:19]) == {}
    corpus = tmp_path / "two kinds.txt"
    corpus.write_text("\n".join(text for pair in zip(sea, snow) for text in pair), encoding="utf-8")
    golpo.start_fresh_training(config={**TINY, "vocab_size": 512}, data_path=corpus, checkpoint_dir=tmp_path / "ck", device="cpu",
                               num_epochs=8, batch_size=8, learning_rate=1e-2, precision="fp32", sample_tokens=0)
    figures = golpo.evaluate(tmp_path / "ck", stories=4, max_new_tokens=60, output=tmp_path / "figures.json")
    assert figures["genre_kept"] >= 0.9
    saved = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert saved["by_people"]["ended"] == 1 and len(saved["told"]) == 4
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_bits_per_byte_do_not_depend_on_the_vocabulary(tmp_path):
    """A model that finds all tokens equally likely spends log2(v) bits on each, whatever the text."""
    for size in (300, 50261):
        model = golpo.GPTModel({**TINY, "vocab_size": size})
        torch.nn.init.zeros_(model.out_head.weight)
        golpo.save_checkpoint(model, None, 0, 0, [], [], [], 0, tmp_path, f"{size}.pt")
        figures = golpo.evaluate(tmp_path / f"{size}.pt", stories=1, max_new_tokens=2)
        tokenizer = golpo.get_tokenizer(size)
        text = tokenizer.decode(golpo.load_corpus(tokenizer=tokenizer).val_ids.tolist())
        tokens = len(golpo.encode(text, tokenizer))
        bits = torch.log2(torch.tensor(float(size))).item()
        assert figures["bits_per_byte"] == pytest.approx(bits * (tokens - 1) / len(text.encode()), rel=1e-3)
