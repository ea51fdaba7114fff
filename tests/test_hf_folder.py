"""GPT-2s of other programs: the same logits and ids as there, or one sentence that says why."""

import json
import re
import shutil

import pytest
import torch
import transformers
from helpers import write_stories
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    SentencePieceBPETokenizer,
    Tokenizer,
)

from golpo.checkpoint import save_checkpoint
from golpo.corpus import load_corpus
from golpo.errors import CheckpointError
from golpo.hf_tokenizer import write_tokenizer
from golpo.huggingface import export_hf, load_gpt2_weights
from golpo.inference import load_storyteller
from golpo.paths import DEFAULT_CORPUS
from golpo.runs import train_or_resume
from golpo.tokenizer import train_tokenizer
from golpo_utils import START, GPTModel, encode, generate, get_tokenizer, stream_story

CONFIG = {
    "vocab_size": 300,
    "context_length": 24,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.1,
    "qkv_bias": False,
    "init_std": 0.3,
}


@pytest.fixture(autouse=True)
def no_progress_bars():
    transformers.utils.logging.disable_progress_bar()


def make_theirs(vocab_size: int = 300, **changes) -> transformers.GPT2LMHeadModel:
    """Hugging Face's GPT-2 with random weights, large enough that logits differ clearly."""
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=24,
        n_embd=32,
        n_head=4,
        n_layer=3,
        initializer_range=0.3,
        **changes,
    )
    model = transformers.GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_export(folder, **changes) -> GPTModel:
    """A folder that this project exported, and its model."""
    torch.manual_seed(1)
    model = GPTModel({**CONFIG, **changes}).eval()
    export_hf(model, get_tokenizer(model.config["vocab_size"]), folder)
    return model


def assert_same_logits(folder, theirs) -> None:
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(get_tokenizer(theirs.config.vocab_size), folder, 24)
    ours, _, _ = load_storyteller(folder)
    ids = torch.randint(0, theirs.config.vocab_size, (2, 24))
    torch.testing.assert_close(ours(ids), theirs(ids).logits.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu_fast"},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_a_gpt2_with_other_settings_has_the_same_logits_here(tmp_path, changes):
    theirs = make_theirs(**changes)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_logits(tmp_path / "theirs", theirs)


def test_a_scale_of_attention_is_read_from_the_config_beside_a_weights_file(tmp_path):
    theirs = make_theirs(scale_attn_weights=False)
    theirs.save_pretrained(tmp_path)
    ours = GPTModel({**CONFIG, "qkv_bias": True})
    load_gpt2_weights(ours, tmp_path / "model.safetensors").eval()
    ids = torch.randint(0, 300, (2, 24))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "key, value",
    [
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("n_inner", 64),
        ("add_cross_attention", True),
    ],
)
def test_a_gpt2_that_computes_otherwise_is_refused_by_the_key(tmp_path, key, value):
    make_theirs(**{key: value}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"'{key}' in its config.json is"):
        load_storyteller(tmp_path)


def test_sizes_are_read_under_their_other_names(tmp_path):
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_head": "num_attention_heads"}
    names |= {"n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}
    renamed = {names.get(key, key): value for key, value in config.items() if key != "n_ctx"}
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    assert_same_logits(tmp_path, theirs)


def test_weights_in_several_files_are_read(tmp_path):
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(tmp_path, theirs)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match="there is no file .*model-00002"):
        load_storyteller(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_in_pytorchs_own_files_are_read(tmp_path, shards):
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    items = list(theirs.state_dict().items())
    if shards == 1:
        torch.save(dict(items), tmp_path / "pytorch_model.bin")
    else:
        where = {}
        for number, part in enumerate((items[:9], items[9:])):
            torch.save(dict(part), tmp_path / f"pytorch_model-{number}.bin")
            where |= {name: f"pytorch_model-{number}.bin" for name, _ in part}
        index = json.dumps({"weight_map": where})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert_same_logits(tmp_path, theirs)


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.touch, ())

    make_theirs().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_storyteller(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_are_read_under_their_other_names(tmp_path, prefix):
    """The bare GPT2Model, and what DistributedDataParallel and torch.compile put before names."""
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    state = theirs.transformer.state_dict() if not prefix else theirs.state_dict()
    weights = {prefix + name: tensor.clone() for name, tensor in state.items()}
    save_file(weights, tmp_path / "model.safetensors")
    assert_same_logits(tmp_path, theirs)


@pytest.mark.parametrize("vocab_size", [300, 50261], ids=["cut vocabulary", "GPT-2's vocabulary"])
def test_what_transformers_saved_after_finetuning_comes_back(tmp_path, vocab_size):
    """Its query, key and value biases are no longer zero, and a pad token was added."""
    make_export(tmp_path / "ours", vocab_size=vocab_size)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    ids = torch.randint(0, vocab_size, (2, 24))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    theirs(ids, labels=ids).loss.backward()
    optimizer.step()
    assert theirs.transformer.h[0].attn.c_attn.bias.any()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    theirs.eval().save_pretrained(tmp_path / "back")
    tokenizer.save_pretrained(tmp_path / "back")
    assert_same_logits(tmp_path / "back", theirs)
    model, found, _ = load_storyteller(tmp_path / "back")
    text = "<|start|>\n<|title|>The Fox</|title|>\n\nHe ran.<|pad|>"
    assert found.encode(text, allowed_special="all") == tokenizer(text)["input_ids"]
    assert model.config["vocab_size"] > model.usable_ids == vocab_size + 1
    # Ids that fill up the vocabulary are never sampled.
    generated = generate(model, torch.tensor([[1]]), 300, 24, temperature=100.0, seed=1)
    assert generated.max() <= vocab_size


def test_a_finetuned_model_without_tokenizer_files_keeps_the_tokenizer_of_its_export(tmp_path):
    make_export(tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    theirs.resize_token_embeddings(303)
    theirs.save_pretrained(tmp_path / "back")
    model, tokenizer, _ = load_storyteller(tmp_path / "back")
    assert tokenizer.name == get_tokenizer(300).name
    assert model.usable_ids == 300
    "".join(stream_story(model, tokenizer, temperature=100.0, max_new_tokens=200, seed=3))


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_a_folder_with_a_byte_level_tokenizer_of_its_own_has_the_same_ids(tmp_path, file):
    text = DEFAULT_CORPUS.read_text(encoding="utf-8")[:100_000]
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator([text], vocab_size=700, special_tokens=["<s>", "<pad>", "</s>"])
    make_theirs(vocab_size=700).save_pretrained(tmp_path)
    if file == "vocab.json":
        theirs.save_model(str(tmp_path))
    else:
        theirs.save(str(tmp_path / file))
    model, tokenizer, _ = load_storyteller(tmp_path)
    assert tokenizer.n_vocab == 700
    for part in (text[:2000], "Fräulein 猫's  \n\n 1,234 "):
        assert tokenizer.encode_ordinary(part) == theirs.encode(part).ids
    assert tokenizer.encode("<pad>", allowed_special="all") == [1]
    export_hf(model, tokenizer, tmp_path / "again")
    _, again, _ = load_storyteller(tmp_path / "again")
    assert again.encode_ordinary(text) == theirs.encode(text).ids
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert exported(text)["input_ids"] == theirs.encode(text).ids


TEXTS = ("The owl saw 12 mice and 36 stars.\n", "Fräulein 猫's  \n\n 1,234 ")


def make_foreign(folder, corpus) -> None:
    """A GPT-2 of another program with a tokenizer of its own, whose first ids are special."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(corpus)], vocab_size=400, special_tokens=["<s>", "<pad>", "</s>"])
    make_theirs(vocab_size=tokenizer.get_vocab_size()).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_padded(folder, ours) -> None:
    """Our model with the tokenizer `ours`, to which transformers has added a pad token."""
    export_hf(GPTModel({**CONFIG, "vocab_size": ours.n_vocab}), ours, folder)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|fill|>"})
    model.resize_token_embeddings(len(tokenizer))
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


STARTS = {
    "foreign": make_foreign,
    "learned, with a pad token": lambda folder, corpus: make_padded(
        folder, train_tokenizer([corpus.read_text()], 300)
    ),
    "GPT-2's, with a pad token": lambda folder, corpus: make_padded(folder, get_tokenizer(300)),
}


@pytest.mark.parametrize("make_start", STARTS.values(), ids=STARTS)
def test_finetuning_from_a_folder_keeps_its_tokenizer(tmp_path, make_start):
    """In the checkpoint, when the training resumes, and in an export, without the folder."""
    corpus = write_stories(tmp_path / "stories.txt")
    start, checkpoints = tmp_path / "start", tmp_path / "checkpoints"
    make_start(start, corpus)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(start / "tokenizer.json"))
    settings = {"data_path": corpus, "checkpoint_dir": checkpoints, "sample_tokens": 0}
    train_or_resume(start_from=str(start), batch_size=4, max_steps=1, **settings)
    shutil.rmtree(start)
    *_, seen = train_or_resume(max_steps=20, **settings)
    assert seen
    model, tokenizer, _ = load_storyteller(checkpoints)
    export_hf(model, tokenizer, tmp_path / "export")
    _, exported, _ = load_storyteller(tmp_path / "export")
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert encode(text, tokenizer) == encode(text, exported) == expected
        assert tokenizer.decode(expected) == text
    assert tokenizer.n_vocab == exported.n_vocab == len(theirs)
    with pytest.raises(CheckpointError, match="'tokenizer' is now 'gpt2'"):
        train_or_resume(tokenizer="gpt2", **settings)


def save_with(folder, name: str, vocab_size: int) -> None:
    """A checkpoint as earlier versions saved it: a folder's tokenizer stands in it by name only."""
    model = GPTModel({**CONFIG, "vocab_size": vocab_size})
    lists = {"train_losses": [], "val_losses": [], "track_tokens_seen": []}
    file = {"checkpoint_dir": folder, "checkpoint_file": "checkpoint_a.pt"}
    numbers = {"epoch": 0, "global_step": 1, "tokens_seen": 0}
    save_checkpoint(model, None, **lists, **file, **numbers, tokenizer=name, tokenizer_data=None)


def test_a_checkpoint_that_lacks_its_tokenizer_is_refused_and_gpt2s_is_still_found(tmp_path):
    save_with(tmp_path / "gpt2", "folder-gpt2-300:+markers+1", 301)
    model, tokenizer, _ = load_storyteller(tmp_path / "gpt2")
    assert encode(TEXTS[0], tokenizer) == encode(TEXTS[0], get_tokenizer(300))
    assert model.usable_ids == 300
    for name in ("folder-0123456789ab", "folder-own-300-0123456789ab+1"):
        save_with(tmp_path / name, name, 301)
        with pytest.raises(CheckpointError, match=f"{re.escape(repr(name))} .* did not save it"):
            load_storyteller(tmp_path / name)


def test_tokenizers_that_differ_share_no_tokens_of_a_corpus(tmp_path):
    """They may have the same merges, with other words or other special tokens."""
    corpus = write_stories(tmp_path / "stories.txt")
    make_foreign(tmp_path / "plain", corpus)
    shutil.copytree(tmp_path / "plain", tmp_path / "other words")
    file = tmp_path / "other words" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}|\P{L}"}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    byte_level["trim_offsets"] = split["invert"] = False
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    file.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "plain", tmp_path / "markers")
    file = tmp_path / "markers" / "tokenizer.json"
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace("<pad>", START), encoding="utf-8")
    found = []
    for folder in ("plain", "other words", "markers"):
        _, tokenizer, _ = load_storyteller(tmp_path / folder)
        ids = load_corpus(corpus, tokenizer, cache_dir=tmp_path / "cache").train_ids.tolist()
        assert ids == load_corpus(corpus, tokenizer, cache_dir=tmp_path / folder).train_ids.tolist()
        found.append(ids)
    assert found[0] != found[1] and found[0] != found[2]


@pytest.mark.parametrize("kind", [BertWordPieceTokenizer, SentencePieceBPETokenizer])
def test_a_folder_with_a_tokenizer_of_another_kind_is_refused(tmp_path, kind):
    theirs = kind()
    theirs.train_from_iterator(["the fox ran over the old stone bridge"] * 9, vocab_size=300)
    make_theirs().save_pretrained(tmp_path)
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="the tokenizer in .* cannot be used: '(type|norm)"):
        load_storyteller(tmp_path)


def add_and_save(folder, token: str, special: bool, file: str) -> None:
    """A foreign folder to whose tokenizer `token` is added, in tokenizer.json or in older files."""
    make_foreign(folder, write_stories(folder.parent / "stories.txt"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = AddedToken(token, special=special, normalized=not special)
    tokenizer.add_special_tokens([added]) if special else tokenizer.add_tokens([added])
    if file == "tokenizer.json":
        tokenizer.save(str(folder / file))
    else:
        (folder / "tokenizer.json").unlink()
        tokenizer.model.save(str(folder))
        number = tokenizer.token_to_id(token)
        if file == "added_tokens.json":
            (folder / file).write_text(json.dumps({token: number}))
            named = {"pad_token": {"content": token}} if special else {}
            (folder / "special_tokens_map.json").write_text(json.dumps(named))
        else:
            decoder = {str(number): {"content": token, "special": special}}
            (folder / file).write_text(json.dumps({"added_tokens_decoder": decoder}))
    make_theirs(vocab_size=tokenizer.get_vocab_size()).save_pretrained(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_added_words_are_refused_and_added_special_tokens_are_read(tmp_path, file):
    """Other programs find an added word in any text, whatever the merges say."""
    (tmp_path / "word").mkdir()
    add_and_save(tmp_path / "word", "owl", False, file)
    with pytest.raises(CheckpointError, match="the added token 'owl' is not special"):
        load_storyteller(tmp_path / "word")
    for name, token, special in (("pad", "<|fill|>", True), ("marker", START, False)):
        (tmp_path / name).mkdir()
        add_and_save(tmp_path / name, token, special, file)
        _, tokenizer, _ = load_storyteller(tmp_path / name)
        assert tokenizer.encode(token, allowed_special="all") == [tokenizer.n_vocab - 1]


def test_a_tokenizer_that_cuts_and_fills_up_texts_for_batches_is_read(tmp_path):
    make_foreign(tmp_path, write_stories(tmp_path / "stories.txt"))
    file = str(tmp_path / "tokenizer.json")
    theirs = Tokenizer.from_file(file)
    expected = [theirs.encode(text).ids for text in TEXTS]
    theirs.enable_truncation(4)
    theirs.enable_padding(length=64)
    theirs.save(file)
    _, tokenizer, _ = load_storyteller(tmp_path)
    assert [encode(text, tokenizer) for text in TEXTS] == expected


def test_without_tokenizer_files_only_gpt2s_sizes_are_taken_for_gpt2(tmp_path):
    make_theirs(vocab_size=50257).save_pretrained(tmp_path / "gpt2")
    _, tokenizer, _ = load_storyteller(tmp_path / "gpt2")
    assert tokenizer.name == get_tokenizer(50257).name
    make_theirs(vocab_size=401).save_pretrained(tmp_path / "unknown")
    with pytest.raises(CheckpointError, match="unknown.* 401 .*tokenizer.json"):
        load_storyteller(tmp_path / "unknown")


@pytest.mark.parametrize("text", ["{}", "not JSON", "[" * 100_000])
def test_a_damaged_file_of_a_learned_tokenizer_is_a_checkpoint_error(tmp_path, text):
    learned = train_tokenizer([DEFAULT_CORPUS.read_text(encoding="utf-8")[:20_000]], 300)
    export_hf(GPTModel(CONFIG), learned, tmp_path)
    (tmp_path / "golpo_tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="golpo_tokenizer.json"):
        load_storyteller(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    make_export(tmp_path / "large", vocab_size=400)
    make_theirs().save_pretrained(tmp_path / "small")
    shutil.copy(tmp_path / "large" / "tokenizer.json", tmp_path / "small")
    with pytest.raises(CheckpointError, match="has 400 tokens, and its model only 300"):
        load_storyteller(tmp_path / "small")


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(config))

    return change


def change_weight(name, change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = change(weights[name])
        save_file(weights, folder / "model.safetensors")

    return apply


def cut(name, size):
    def apply(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return apply


def overwrite(name, text):
    return lambda folder: (folder / name).write_text(text)


UP = "transformer.h.1.mlp.c_fc.weight"
DAMAGES = {
    "weights cut short": cut("model.safetensors", 5000),
    "weights empty": cut("model.safetensors", 0),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config cut short": cut("config.json", 50),
    "config empty": cut("config.json", 0),
    "config a list": overwrite("config.json", "[1]"),
    "config of brackets": overwrite("config.json", "[" * 100_000),
    "too many layers": change_config(n_layer=10**9),
    "layers in words": change_config(n_layer="three"),
    "another width": change_config(n_embd=64),
    "another vocabulary": change_config(vocab_size=400),
    "another context": change_config(n_positions=48),
    "heads that do not divide": change_config(n_head=5),
    "activation null": change_config(activation_function=None),
    "tokenizer cut short": cut("tokenizer.json", 500),
    "tokenizer empty": overwrite("tokenizer.json", "{}"),
    "tokenizer of brackets": overwrite("tokenizer.json", "[" * 100_000),
    "a weight of another shape": change_weight(UP, lambda _: torch.zeros(2, 3, 4)),
    "a weight in 8 bits": change_weight(UP, lambda weight: weight.to(torch.int8)),
    "a weight NaN": change_weight(
        UP, lambda weight: weight.index_fill(0, torch.tensor(3), torch.nan)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path, damage):
    make_export(tmp_path / "ours")
    load_storyteller(tmp_path / "ours")
    damage(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="ours") as found:
        load_storyteller(tmp_path / "ours")
    assert "\n" not in str(found.value)
    assert found.value.__suppress_context__ or found.value.__cause__ is None


def test_weights_that_are_not_numbers_are_named(tmp_path):
    make_export(tmp_path / "ours")
    DAMAGES["a weight NaN"](tmp_path / "ours")
    with pytest.raises(CheckpointError, match=f"'{UP}' holds NaN"):
        load_storyteller(tmp_path / "ours")
