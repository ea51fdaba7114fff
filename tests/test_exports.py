"""Exports in the hands of their real clients: the same ids, the same logits, the same stories."""

import copy
import errno
import gzip
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from tiktoken_ext.openai_public import r50k_pat_str

from golpo.checkpoint import save_checkpoint
from golpo.corpus import read_stories
from golpo.eight_bits import round_to_8_bits
from golpo.errors import MissingPackageError
from golpo.export_onnx import export_onnx
from golpo.exports import export
from golpo.huggingface import export_hf
from golpo.inference import load_storyteller, prepare_for_inference
from golpo.lora import adapter_parameters, add_adapter, merge_adapters
from golpo.packages import import_optional
from golpo.paths import DEFAULT_CORPUS, PROJECT_DIR
from golpo.tokenizer import (
    FIRST_PATTERN,
    PATTERN,
    FolderTokenizer,
    make_encoding,
    train_tokenizer,
)
from golpo_utils import END, GPTModel, encode, generate, get_tokenizer, story_opening

# A folder node_modules with node-llama-cpp, which brings llama.cpp, and @huggingface/transformers.
NODE_MODULES = Path(os.environ.get("GOLPO_NODE_MODULES", "node_modules")).resolve()
MAKE_MODEL = str(PROJECT_DIR / "docs" / "app" / "make_model.py")
CONFIG = {
    "context_length": 128,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
    "init_std": 0.15,
}
TITLE = "<|start|>\n<|title|>The Lost Key</|title|>"
PACKAGES = {"hf": "safetensors", "gguf": "gguf", "ctranslate2": "ctranslate2", "onnx": "onnxscript"}
NATURAL_PROMPTS = ["<|start|>", "<|start|>\n", TITLE, TITLE + "\n\n", TITLE + "\n\nOnce there was"]
STORY = TITLE + "\n\nOnce there was a key; nobody's 1,234 keys fitted.\n\nIt was lost.\n<|end|>"


def stories(count: int) -> list[str]:
    return [text.rstrip("\n") for text in itertools.islice(read_stories(DEFAULT_CORPUS), count)]


def make_tokenizer(kind: str):
    if kind == "own":
        return train_tokenizer(stories(300), 800)
    return get_tokenizer({"cut": 4096, "whole": 50261}[kind])


def make_storyteller(kind: str):
    """A small model with random weights and clearly different logits, and its tokenizer."""
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(3)
    return GPTModel({**CONFIG, "vocab_size": tokenizer.n_vocab}).eval(), tokenizer


@pytest.fixture(params=["own", "cut"], scope="module")
def storyteller(request):
    return make_storyteller(request.param)


def until_end(ids: list[int], tokenizer) -> list[int]:
    end = encode(END, tokenizer)[0]
    return ids[: ids.index(end)] if end in ids else ids


def greedy(model, tokenizer, opening: str, count: int) -> list[int]:
    ids = torch.tensor([story_opening(tokenizer, opening, markers=True)])
    context = model.config["context_length"]
    return until_end(generate(model, ids, count, context)[0, ids.shape[1] :].tolist(), tokenizer)


@pytest.mark.parametrize("kind", ["own", "cut", "whole"])
def test_natural_prompts_have_the_tokens_of_a_story_in_transformers(tmp_path, kind):
    """Also those that end in line breaks, which GPT-2's own rule joins at the end of a text."""
    tokenizer = make_tokenizer(kind)
    model = GPTModel({**CONFIG, "vocab_size": tokenizer.n_vocab, "n_layers": 1})
    export(model, tokenizer, str(tmp_path / "hf"), "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    expected = encode(STORY, tokenizer)
    for prompt in NATURAL_PROMPTS:
        ids = theirs(prompt)["input_ids"]
        assert ids == expected[: len(ids)], prompt
    for text in stories(200):
        assert theirs(text)["input_ids"] == encode(text, tokenizer)


def test_transformers_generates_what_we_do_in_a_padded_batch_too(tmp_path, storyteller):
    model, tokenizer = storyteller
    export(model, tokenizer, str(tmp_path / "hf"), "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", padding_side="left")
    assert text.pad_token_id != text.eos_token_id
    assert theirs.generation_config.eos_token_id == encode(END, tokenizer)[0]
    assert theirs.generation_config.max_length == 128
    batch = text(NATURAL_PROMPTS, return_tensors="pt", padding=True)
    out = theirs.generate(**batch, do_sample=False, max_new_tokens=40, top_k=None, top_p=None)
    for row, prompt in zip(out.tolist(), NATURAL_PROMPTS, strict=True):
        found = until_end(row[batch["input_ids"].shape[1] :], tokenizer)
        assert found == greedy(model, tokenizer, prompt, 40), prompt


def test_the_model_card_says_what_was_trained_and_names_no_folder(tmp_path):
    tokenizer = get_tokenizer(300)
    model = GPTModel({**CONFIG, "vocab_size": 300})
    settings = {"data_path": "/home/me/secret/tales.txt", "num_epochs": 3, "seed": 7}
    about = {"global_step": 1234, "tokens_seen": 56789, "val_losses": [2.0, 1.5]}
    folder = tmp_path / "My model"
    export(model, tokenizer, str(folder), "hf", None, about | {"settings": settings})
    text = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "mit"
    assert "language" not in front  # a corpus of one's own may be in any
    assert front["pipeline_tag"] == "text-generation"
    assert front["library_name"] == "transformers"
    for words in ("# My model", "tales.txt", "1,234", "56,789", "1.500 nats", "| num epochs | 3 |"):
        assert words in text
    everything = text + (folder / "config.json").read_text(encoding="utf-8")
    assert "secret" not in everything
    assert (folder / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    _, _, back = load_storyteller(folder)
    assert back["global_step"] == 1234
    assert back["val_losses"] == [1.5]
    (folder / "README.md").write_text("My own card.")
    export(model, tokenizer, str(folder), "hf")
    assert (folder / "README.md").read_text() == "My own card."


def test_the_model_card_names_the_language_where_it_is_known(tmp_path):
    def language_of(folder):
        card = (folder / "README.md").read_text(encoding="utf-8")
        return yaml.safe_load(card.split("---")[1]).get("language")

    model, tokenizer = GPTModel({**CONFIG, "vocab_size": 300}), get_tokenizer(300)
    about = {"settings": {"data_path": str(DEFAULT_CORPUS)}}
    export(model, tokenizer, str(tmp_path / "one"), "hf", None, about)
    again, tokenizer, about = load_storyteller(tmp_path / "one")
    export(again, tokenizer, str(tmp_path / "two"), "hf", None, about)
    export_hf(model, tokenizer, tmp_path / "three", language="bn")
    bundled, tokenizer, about = load_storyteller("bundled")
    export(bundled, tokenizer, str(tmp_path / "four"), "hf", None, about)
    found = [language_of(tmp_path / name) for name in ("one", "two", "three", "four")]
    assert found == ["en", "en", "bn", "en"]


def run_make_model(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, MAKE_MODEL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_pages_model_has_its_adapters_merged(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, _ = make_storyteller("cut")
    add_adapter(model, rank=2)
    for parameter in adapter_parameters(model):
        torch.nn.init.normal_(parameter, std=0.3)
    facts = {"epoch": 0, "global_step": 1, "tokens_seen": 0, "train_losses": []}
    file = {"checkpoint_dir": tmp_path, "checkpoint_file": "checkpoint_a.pt"}
    save_checkpoint(model, None, **facts, **file, val_losses=[], track_tokens_seen=[])
    make_page_model = runpy.run_path(MAKE_MODEL)["make_page_model"]
    make_page_model(str(tmp_path), tmp_path / "page")
    packed = (tmp_path / "page" / "model.onnx.gz").read_bytes()
    session = onnxruntime.InferenceSession(gzip.decompress(packed))
    ids = torch.tensor([[5, 80, 7, 200, 11, 3]])
    past = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    empty = np.zeros((1, CONFIG["n_heads"], 0, CONFIG["emb_dim"] // CONFIG["n_heads"]), np.float32)
    feeds = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 6), int)}
    feeds["position_ids"] = np.arange(6)[None]
    logits = session.run(["logits"], feeds | dict.fromkeys(past, empty))[0]
    merge_adapters(model)
    round_to_8_bits(model)
    torch.testing.assert_close(torch.from_numpy(logits), model(ids).detach(), rtol=0, atol=1e-3)


def test_the_pages_model_without_a_checkpoint_is_one_sentence(tmp_path):
    done = run_make_model("--checkpoint", tmp_path / "nowhere", "--output", tmp_path / "page")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "there is no checkpoint in" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_format_or_precision_that_is_not_there_is_named(tmp_path, storyteller):
    for format, precision in (("pdf", None), ("hf", "q8_0"), ("gguf", "int8"), ("onnx", "f16")):
        with pytest.raises(ValueError, match=precision or format):
            export(*storyteller, str(tmp_path / "out"), format, precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", PACKAGES)
def test_a_model_that_no_format_can_hold_is_refused_before_anything_is_written(tmp_path, format):
    pytest.importorskip(PACKAGES[format])
    tokenizer = get_tokenizer(300)
    adapted = GPTModel({**CONFIG, "vocab_size": 300})
    add_adapter(adapted, "sea", rank=2)
    quantized = prepare_for_inference(GPTModel({**CONFIG, "vocab_size": 300}), quantize=True)
    narrow = GPTModel({**CONFIG, "vocab_size": 300, "val_dim": 32})
    plain = GPTModel({**CONFIG, "vocab_size": 300})
    for model, named in (
        (adapted, "the adapter 'sea'.*merge_adapters"),
        (quantized, "8-bit weights.*without quantize"),
        (narrow, "'val_dim' 32"),
        (None, "the model is None"),
    ):
        with pytest.raises(ValueError, match=named):
            export(model, tokenizer, str(tmp_path / "out"), format)
    with pytest.raises(ValueError, match="the tokenizer is 'gpt2'"):
        export(plain, "gpt2", str(tmp_path / "out"), format)
    assert not list(tmp_path.iterdir())


def test_an_output_of_the_wrong_kind_is_named(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("onnxscript")
    storyteller = make_storyteller("cut")
    with pytest.raises(ValueError, match="is a folder.*model.gguf"):
        export(*storyteller, str(tmp_path), "gguf")
    with pytest.raises(ValueError, match="precision is 'int4'; it must be 'float32' or 'int8'"):
        export_onnx(*storyteller, tmp_path / "out", "int4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for format in ("hf", "ctranslate2", "onnx"):
        with pytest.raises(NotADirectoryError, match="choose another"):
            export(*storyteller, str(tmp_path / "file"), format)
    assert contents(tmp_path) == {"file": b"mine"}


# GPT-4's pattern in short: a word begins with any sign, and digits stand in threes.
GPT4_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def test_a_tokenizer_whose_words_llama_cpp_would_split_otherwise_is_refused(tmp_path):
    pytest.importorskip("gguf")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"(o": 256, b"(ow": 257}
    gpt4, gpt2 = (
        FolderTokenizer(pattern, ranks, {"<|endoftext|>": 258})
        for pattern in (GPT4_PATTERN, r50k_pat_str)
    )
    assert encode("(owl)", gpt4) != encode("(owl)", gpt2)
    learned = make_encoding(GPT4_PATTERN, [b"(o", b"(ow"])
    model = GPTModel({**CONFIG, "vocab_size": learned.n_vocab})
    for tokenizer in (gpt4, learned):
        with pytest.raises(ValueError, match="splits texts into other words than GPT-2's"):
            export(model, tokenizer, str(tmp_path / "model.gguf"), "gguf")
    assert not list(tmp_path.iterdir())
    for tokenizer in (gpt2, make_encoding(PATTERN, []), make_encoding(FIRST_PATTERN, [])):
        export(model, tokenizer, str(tmp_path / "model.gguf"), "gguf")


def test_a_missing_package_is_asked_for_with_its_command():
    with pytest.raises(MissingPackageError, match="the X format needs .* run: pip install no_such"):
        import_optional("no_such_package.part", "the X format")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_ctranslate2_generates_what_we_do(tmp_path, storyteller, precision):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model, tokenizer = storyteller
    export(model, tokenizer, str(tmp_path / "ct2"), "ctranslate2", precision)
    theirs = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", intra_threads=1)
    pieces = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "ct2" / "tokenizer.json")
    )
    prompts = [pieces.convert_ids_to_tokens(pieces(one)["input_ids"]) for one in NATURAL_PROMPTS]
    ids = encode(STORY, tokenizer)
    logits = np.array(theirs.forward_batch([pieces.convert_ids_to_tokens(ids)]))[0]
    ours = model(torch.tensor([ids]))[0].detach()
    if precision == "int8":
        similarity = torch.cosine_similarity(torch.from_numpy(logits), ours, dim=-1)
        assert similarity.min() > 0.9  # 0.98 with AVX-512, 0.94 without; other weights: about 0
        return
    torch.testing.assert_close(torch.from_numpy(logits), ours, rtol=0, atol=1e-3)
    for prompt, tokens in zip(NATURAL_PROMPTS, prompts, strict=True):
        options = {"max_length": 40, "sampling_topk": 1, "include_prompt_in_result": False}
        result = theirs.generate_batch([tokens], **options)[0]
        assert result.sequences_ids[0] == greedy(model, tokenizer, prompt, 40), prompt


@pytest.mark.parametrize("format", ["hf", "ctranslate2", "onnx"])
def test_an_export_leaves_the_other_files_of_its_folder_alone(tmp_path, format):
    pytest.importorskip(PACKAGES[format])
    storyteller = make_storyteller("cut")
    folder = tmp_path / "mine"
    (folder / "drafts").mkdir(parents=True)
    own = [folder / "thesis.docx", folder / "drafts" / "one.txt"]
    for file in own:
        file.write_text("years of work")
    for _ in range(2):  # into a new folder, and over an earlier export
        export(*storyteller, str(folder), format)
        assert [file.read_text() for file in own] == ["years of work"] * 2
        assert len(list(folder.iterdir())) > len(own)
        assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def break_hf(monkeypatch):
    monkeypatch.setattr("golpo.huggingface.write_tokenizer", raise_no_space)


def break_gguf(monkeypatch):
    import gguf

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", raise_no_space)


def break_ctranslate2(monkeypatch):
    from ctranslate2.converters import TransformersConverter

    convert = TransformersConverter.convert

    def convert_and_fail(*arguments, **options):
        convert(*arguments, **options)
        raise_no_space()

    monkeypatch.setattr(TransformersConverter, "convert", convert_and_fail)


def break_onnx(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", raise_no_space)


def raise_no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


BREAKS = {"hf": break_hf, "gguf": break_gguf, "ctranslate2": break_ctranslate2, "onnx": break_onnx}


@pytest.mark.parametrize("format", BREAKS)
def test_an_export_that_fails_half_way_leaves_the_earlier_one_whole(tmp_path, monkeypatch, format):
    pytest.importorskip(PACKAGES[format])
    model, tokenizer = make_storyteller("cut")
    output = str(tmp_path / ("mine" if format != "gguf" else "mine.gguf"))
    export(model, tokenizer, output, format)
    before = contents(tmp_path)
    other = GPTModel({**model.config, "n_layers": 1})
    BREAKS[format](monkeypatch)
    with pytest.raises(OSError, match="No space"):
        export(other, tokenizer, output, format)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("precision", "file"), [("float32", "model.onnx"), ("int8", "model_quantized.onnx")]
)
def test_onnx_runtime_has_the_same_logits(tmp_path, storyteller, precision, file):
    """In 8 bits: those of the model with rounded weights."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, tokenizer = storyteller
    export(model, tokenizer, str(tmp_path), "onnx", precision)
    if precision == "int8":
        model = copy.deepcopy(model)
        round_to_8_bits(model)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / file))
    ids = np.array([encode(STORY, tokenizer)])
    past = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    assert len(past) == 2 * CONFIG["n_layers"]
    empty = np.zeros((1, CONFIG["n_heads"], 0, CONFIG["emb_dim"] // CONFIG["n_heads"]), np.float32)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds |= {"position_ids": np.arange(ids.shape[1])[None]}
    names = {one.name for one in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in names}
    logits = session.run(["logits"], feeds | dict.fromkeys(past, empty))[0]
    expected = model(torch.from_numpy(ids)).detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-3)
    padded = {name: np.pad(value, ((0, 0), (5, 0))) for name, value in feeds.items()}
    logits = session.run(["logits"], padded | dict.fromkeys(past, empty))[0]
    torch.testing.assert_close(torch.from_numpy(logits[:, 5:]), expected, rtol=0, atol=1e-3)


def ask_node(script: str, modules: Path, exported: Path, folder: Path, **asked) -> dict:
    """What a client in node answers about `exported`: "ids" of texts, "generated" after openings.

    modules: the folder node_modules with the client's package.
    """
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(Path(__file__).parent / script, folder)
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = ["node", "--preserve-symlinks-main", script, str(exported), "asked.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_ids(found: list[list[int]], texts: list[str], tokenizer) -> None:
    """Compare a client's ids with ours: stories', and the first ones of STORY for its prompts."""
    expected = encode(STORY, tokenizer)
    for text, ids in zip(texts, found, strict=True):
        if text in NATURAL_PROMPTS:
            assert ids == expected[: len(ids)], text
        else:
            assert ids == encode(text, tokenizer), text


def test_llama_cpp_finds_the_same_ids_and_generates_the_same_tokens(tmp_path, storyteller):
    pytest.importorskip("gguf")
    if shutil.which("node") is None or not (NODE_MODULES / "node-llama-cpp").is_dir():
        pytest.skip("node-llama-cpp is not installed; see GOLPO_NODE_MODULES")
    model, tokenizer = storyteller
    file = tmp_path / "model.gguf"
    export(model, tokenizer, str(file), "gguf", "f32")
    asked = {"texts": stories(200) + NATURAL_PROMPTS, "openings": NATURAL_PROMPTS}
    answer = ask_node("llama.mjs", NODE_MODULES, file, tmp_path, **asked, tokens=40, context=128)
    check_ids(answer["ids"], asked["texts"], tokenizer)
    for prompt, ids in zip(NATURAL_PROMPTS, answer["generated"], strict=True):
        assert ids == greedy(model, tokenizer, prompt, 40)[: len(ids)], prompt
        assert ids


@pytest.fixture(scope="module")
def transformers_js(tmp_path_factory):
    """A folder node_modules with transformers.js, installed if GOLPO_NODE_MODULES has none."""
    if (NODE_MODULES / "@huggingface" / "transformers").is_dir():
        yield NODE_MODULES
        return
    if shutil.which("npm") is None:
        pytest.skip("npm is missing")
    folder = tmp_path_factory.mktemp("node")
    # Without the packages' scripts: ONNX Runtime's would download its part for GPUs.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]
    command += [str(folder), "@huggingface/transformers@4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"npm cannot install transformers.js: {done.stderr[-300:]}")
    yield folder / "node_modules"
    shutil.rmtree(folder)  # half a gigabyte


def compare_with_transformers_js(storyteller, openings: list[str], modules: Path, folder: Path):
    model, tokenizer = storyteller
    exported = folder / "mine"
    export(model, tokenizer, str(exported), "onnx")
    asked = {"texts": stories(200) + NATURAL_PROMPTS, "openings": openings, "tokens": 40}
    answer = ask_node("transformers_js.mjs", modules, exported, folder, **asked)
    check_ids(answer["ids"], asked["texts"], tokenizer)
    found = zip(openings, answer["generated"], answer["shown"], strict=True)
    for opening, ids, text in found:
        assert until_end(ids, tokenizer) == greedy(model, tokenizer, opening, 40), opening
        assert text == tokenizer.decode(ids), opening


def test_transformers_js_generates_what_we_do(tmp_path, storyteller, transformers_js):
    pytest.importorskip("onnxscript")
    compare_with_transformers_js(storyteller, NATURAL_PROMPTS, transformers_js, tmp_path)


@pytest.mark.slow
def test_transformers_js_generates_what_the_bundled_model_does(tmp_path, transformers_js):
    pytest.importorskip("onnxscript")
    model, tokenizer, *_ = load_storyteller("bundled", "cpu")
    parts = {"The Lost Kite": "", "The Moon": "One night, a boy", "A Red Ball": "Mia had"}
    openings = ["<|start|>\n<|title|>", TITLE + "\n\nThe old lighthouse keeper"]
    openings += [f"<|start|>\n<|title|>{title}</|title|>\n\n{parts[title]}" for title in parts]
    compare_with_transformers_js((model, tokenizer), openings, transformers_js, tmp_path)


@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0"])
def test_a_gguf_file_holds_the_weights(tmp_path, storyteller, precision):
    gguf = pytest.importorskip("gguf")
    model, tokenizer = storyteller
    export(model, tokenizer, str(tmp_path / "model.gguf"), "gguf", precision)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {one.name: one for one in reader.tensors}
    found = tensors["blk.1.ffn_up.weight"]
    values = gguf.quants.dequantize(found.data, found.tensor_type)
    expected = model.trf_blocks[1].ff.layers[0].weight.detach()
    accuracy = {"f32": 0, "f16": 1e-3, "q8_0": 1e-2}[precision]
    torch.testing.assert_close(torch.from_numpy(values.copy()), expected, rtol=0, atol=accuracy)
    assert "output.weight" not in tensors  # the head is tied
