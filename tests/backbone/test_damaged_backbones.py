"""Backbone folders that are damaged, or made of two models: one message each, before a weight is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from builders.refusals import refused
from builders.worlds import experiment, small_data
from lingualift.backbone.checkpoint import MOST_JSON
from lingualift.backbone.loading import check_loadable, load_model
from lingualift.backbone.reference import find_backbone, loading
from lingualift.config import Backbone
from lingualift.miniworld import BACKBONE

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def put(name, content):
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def edit(name, **changes):
    def change(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return change


def index(weight_map):
    def change(folder):
        (folder / WEIGHTS).rename(folder / "part.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def config(**changes):
    return edit("config.json", **changes)


def tokens(**changes):
    return edit("tokenizer_config.json", **changes)


def renumbered(token, old, new):
    """Gives a token an id that the model has no embedding for."""

    def change(folder):
        file = folder / "tokenizer.json"
        values = json.loads(file.read_text())
        assert values["model"]["vocab"][token] == old
        values["model"]["vocab"][token] = new
        for added in values["added_tokens"]:
            added["id"] = new if added["content"] == token else added["id"]
        file.write_text(json.dumps(values))

    return change


DAMAGED = [  # what happened to the folder, which file is named (None: the folder), and what is said of it
    *((cut(WEIGHTS, length), WEIGHTS, "not whole") for length in (4, 8, 100, 5000, 900_000)),
    (cut(WEIGHTS, 0), WEIGHTS, "empty"),
    (put(WEIGHTS, b"\x10\0\0\0\0\0\0\0{{{{{{{{{{{{{{{{"), WEIGHTS, "not whole"),
    (put(WEIGHTS, POINTER), WEIGHTS, "git-lfs"),
    (put(WEIGHTS, "\n<!DOCTYPE html><html>404"), WEIGHTS, "a web page"),
    (put("tokenizer.json", POINTER), "tokenizer.json", "git-lfs"),
    *((cut("tokenizer.json", length), None, "cannot be loaded") for length in (0, 1, 50, 2000)),
    *(
        (put("tokenizer.json", text), None, "cannot be loaded")
        for text in ("null", "{}", "[]", '{"version": 1}')
    ),
    (lambda folder: (folder / "tokenizer.json").unlink(), None, "cannot be loaded"),
    (cut("config.json", 0), "config.json", "empty"),
    *((cut("config.json", length), "config.json", "not JSON") for length in (1, 50)),
    *(
        (put(file, text), file, f"not a JSON object but {kind}")
        for file in ("config.json", "tokenizer_config.json")
        for text, kind in (("null", "NoneType"), ("[]", "list"), ("1", "int"), ('"x"', "str"))
    ),
    (put("config.json", b"\xff\xfe{}"), "config.json", "not UTF-8"),
    (put("config.json", '{"a":' * 900 + "1" + "}" * 900), "config.json", "100 levels"),
    (put("config.json", '{"a":' * 90_000), "config.json", "100 levels"),
    (put("config.json", "[" + "0," * (MOST_JSON // 2)), "config.json", "33554433 bytes"),
    (put("config.json", "<html>"), "config.json", "a web page"),
    (put("generation_config.json", "[1"), "generation_config.json", "not JSON"),
    (put("generation_config.json", POINTER), "generation_config.json", "git-lfs"),
    (put("special_tokens_map.json", "[]"), "special_tokens_map.json", "not a JSON object"),
    (config(hidden_size="big"), None, "cannot be loaded"),
    (config(hidden_size=-8), None, "cannot be loaded"),
    (config(hidden_size=7), None, "cannot be loaded"),
    (config(num_attention_heads=0), None, "cannot be loaded"),
    (config(num_hidden_layers=None), None, "cannot be loaded"),
    (config(model_type=["llama"]), None, "cannot be loaded"),
    (config(model_type=None), None, "cannot be loaded"),
    (config(hidden_act="nope"), None, "cannot be loaded"),
    (config(rope_scaling=5), None, "cannot be loaded"),
    (config(eos_token_id="x"), None, "cannot be loaded"),
    (config(pad_token_id=10**9), None, "cannot be loaded"),
    (config(quantization_config=[]), None, "cannot be loaded"),
    (config(num_hidden_layers=10**6), "config.json", "`num_hidden_layers` is 1000000; at most 1000"),
    (config(text_config={"n_layer": 10**6}), "config.json", "`n_layer` is 1000000"),
    (config(attention_dropout=5), "config.json", "`attention_dropout` is 5; a share from 0 to 1"),
    (config(attn_implementation="kernels-community/x"), None, "'kernels-community/x'"),
    (config(vocab_size=10), None, "model.embed_tokens.weight is [643, 96], and [10, 96] by that"),
    (config(vocab_size=10**12), None, "model.embed_tokens.weight is [643, 96], and [1000000000000, 96]"),
    (config(hidden_size=48, head_dim=12), None, "[643, 96], and [643, 48]"),
    (config(num_key_value_heads=1), None, "[96, 96], and [24, 96]"),
    (config(num_hidden_layers=0), None, "(model.layers.0."),
    (config(num_hidden_layers=1), None, "(model.layers.1."),
    (tokens(tokenizer_class=["x"]), None, "cannot be loaded"),
    (tokens(model_max_length="x"), None, "cannot be loaded"),
    (tokens(bos_token=5), None, "cannot be loaded"),
    (tokens(added_tokens_decoder={"x": 1}), None, "cannot be loaded"),
    (index({"a": "nope.safetensors", "b": "part.safetensors"}), None, f"nope.safetensors, which {INDEX}"),
    (index({"a": "../part.safetensors"}), INDEX, "'../part.safetensors'; a file beside"),
    (index({"a": "/etc/passwd"}), INDEX, "'/etc/passwd'"),
    (index({"a": ["part.safetensors"]}), INDEX, "`weight_map`"),
    (index(["part.safetensors"]), INDEX, "`weight_map`"),
    (index({}), INDEX, "`weight_map`"),
    (config(transformers_weights="../x"), "config.json", "'../x'"),
    (config(transformers_weights=5), "config.json", "'5'"),
]


@pytest.fixture
def damaged(tmp_path):
    """Copies the mini-world's backbone and changes the copy."""
    made = iter(range(10**6))

    def make(change):
        folder = shutil.copytree(BACKBONE, tmp_path / f"backbone{next(made)}")
        change(folder)
        return folder

    return make


def found(folder, **more):
    return find_backbone(Backbone(name=str(folder), **more))


def test_a_damaged_folder_is_one_message_before_a_weight_is_loaded(damaged):
    check_loadable(found(damaged(lambda folder: None)))
    for change, file, said in DAMAGED:
        folder = damaged(change)
        with refused(f"{folder}/{file}" if file else str(folder), said):
            check_loadable(found(folder))


def test_loading_says_the_same(damaged):
    for change, file, said in DAMAGED:
        folder = damaged(change)
        with refused(f"{folder}/{file}" if file else str(folder), said):
            load_model(found(folder))


def test_no_pickle_is_read(damaged, tmp_path):
    class Ran:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    for name in ("pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"):

        def pickled(folder, name=name):
            (folder / WEIGHTS).unlink()
            torch.save({"model.norm.weight": Ran()}, folder / name)

        with refused(str(tmp_path), "no weights that transformers loads"):
            found(damaged(pickled))
    ref = found(damaged(lambda folder: None))
    (Path(ref.source) / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Ran()}, Path(ref.source) / "pytorch_model.bin")
    with refused(ref.source, "cannot be loaded"):  # removed since it was found
        load_model(ref)
    assert not Path("ran").exists()


def test_an_id_without_an_embedding_is_told_when_it_is_read(damaged):
    model, tokenizer = load_model(found(damaged(renumbered("good", 8, 9008))))
    model(**tokenizer("bad", return_tensors="pt"))
    with refused("backbone", "9008", "643"):
        model(**tokenizer("good", return_tensors="pt"))
    with refused("backbone", " 900,", "643"):
        load_model(found(damaged(renumbered("<pad>", 0, 900))))


def test_weights_in_several_files_and_of_other_names_are_read_as_they_were(damaged):
    whole = load_model(found(damaged(lambda folder: None)))[0].state_dict()
    parts = damaged(index(dict.fromkeys(whole, "part.safetensors")))
    named = damaged(config(transformers_weights="mine.safetensors"))
    (named / WEIGHTS).rename(named / "mine.safetensors")
    for folder in (parts, named):
        ref = found(folder)
        check_loadable(ref)
        read = load_model(ref)[0].state_dict()
        assert all(torch.equal(read[name], weight) for name, weight in whole.items())


def test_a_name_that_no_folder_can_have_is_refused():
    for name, where, said in (
        ("./" + "a" * 300, "aaa", "too long"),
        ("./a\0b", "'./a\\x00b'", "no folder"),
        ("~nobody-of-that-name/x/y", "'~nobody-of-that-name/x/y'", "no folder"),
    ):
        with refused(where, said):
            find_backbone(Backbone(name=name))


def test_commands_say_it_in_one_message_and_write_nothing(cli, inside, damaged):
    small_data(inside / "data")
    rows = "data/sentiment/sw/test.jsonl"
    for change, said in (
        (cut(WEIGHTS, 5000), "is not whole"),
        (config(num_hidden_layers=1), "leaves out blocks"),
    ):
        folder = damaged(change)
        raw = experiment(Path("data"), methods=["vanilla"])
        raw["backbone"] = {"name": str(folder)}
        (inside / "e.yaml").write_text(yaml.safe_dump(raw))
        asked = ("--backbone", folder, "--task", "mini-sentiment", "--language", "sw")
        for command in (
            ("plan", "e.yaml", "--no-calibrate"),
            ("check", "e.yaml"),
            ("run", "e.yaml", "--output", "o"),
            ("predict", *asked, "--input", rows, "--output", "o.jsonl"),
            (
                "train",
                *asked,
                "--data",
                "data/sentiment/{language}/{split}.jsonl",
                "--steps",
                "1",
                "--output",
                "o",
            ),
        ):
            done = cli(*command)
            assert said in done.message, command
            assert not list(inside.glob("o*")), command


def test_a_lack_of_memory_is_not_called_damage():
    for error, mend in (
        (MemoryError(), "free memory"),
        (RuntimeError("can't allocate 9 bytes"), "free memory"),
    ):
        with refused("x", "cannot be loaded", mend=mend), loading("x"):
            raise error
    with pytest.raises(KeyboardInterrupt), loading("x"):
        raise KeyboardInterrupt
