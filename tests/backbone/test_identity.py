"""A backbone is told by what determines its function, wherever its files lie and whatever lies beside them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builders.refusals import refused
from lingualift.attachment import check_adapter
from lingualift.backbone.checkpoint import former, of_folder
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Backbone
from lingualift.merging import merge
from lingualift.miniworld import BACKBONE

TURNS = (
    "{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(BACKBONE, tmp_path / "model"))


def edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def note(folder):
    (folder / "notes.txt").write_text("fine")
    (folder / "trainer_state.json").write_text('{"eval_loss": 1.0}')


def versions(folder):
    edit(folder / "config.json", lambda value: value.update(transformers_version="5.99.0", _name_or_path="x"))
    edit(folder / "config.json", lambda value: value.pop("dtype", None))


def order(folder):
    edit(folder / "config.json", lambda value: [value.update({key: value.pop(key)}) for key in sorted(value)])


def template(folder):
    (folder / "chat_template.jinja").write_text(TURNS)


def checkpoint(folder):
    shutil.copytree(BACKBONE, folder / "checkpoint-10")


def one_number(folder):
    tensors = load_file(folder / "model.safetensors")
    first = next(iter(tensors))
    tensors[first] = tensors[first].copy()
    tensors[first].flat[0] += np.float32(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def heads(folder):
    edit(folder / "config.json", lambda value: value.update(rms_norm_eps=1e-3))


def deep(folder):
    edit(folder / "config.json", lambda value: value.update(rope_parameters={"rope_theta": 5.0}))


def words(folder):
    edit(folder / "tokenizer.json", lambda value: value.update(normalizer={"type": "Lowercase"}))


def beginnings(folder):
    edit(folder / "tokenizer_config.json", lambda value: value.update(add_bos_token=False))


@pytest.mark.parametrize("change", [note, versions, order, template, checkpoint])
def test_what_changes_no_answer_changes_no_fingerprint(model, change):
    change(model)
    assert of_folder(model) == of_folder(Path(BACKBONE))


@pytest.mark.parametrize("change", [one_number, heads, deep, words, beginnings])
def test_what_changes_answers_changes_the_fingerprint(model, change):
    change(model)
    assert of_folder(model) != of_folder(Path(BACKBONE))


def cached(folder, root, name="org/model", commit="c" * 40):
    """A folder as the hub's cache holds it."""
    place = root / f"models--{name.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        large = file.suffix == ".safetensors"
        blob = place / "blobs" / (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(blob)
    return name, commit


def sharded(folder):
    """The same weights in two files."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (name > names[len(names) // 2])}-of-00002.safetensors" for name in names}
    for file in sorted(set(files.values())):
        save_file(
            {name: tensors[name] for name in names if files[name] == file}, folder / file, {"format": "pt"}
        )
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("shards", [False, True])
def test_a_model_of_the_hub_and_its_copy_are_one(model, tmp_path, shards):
    if shards:
        sharded(model)
    name, commit = cached(model, tmp_path / "hub")
    code = f"""
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone
ref = find_backbone(Backbone(name={name!r}))
print(ref.revision, ref.fingerprint)
"""
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [commit, of_folder(model)]


def ref_of(folder):
    return find_backbone(Backbone(name=str(folder)))


def adapter(path, facts, seed=0):
    from builders.adapter_folders import write_lora

    return write_lora(path, seed=seed, provenance={"kind": "trained", "backbone": facts})


def test_an_adapter_that_recorded_the_former_fingerprint_is_taken(model, tmp_path):
    ref = ref_of(model)
    old = {"name": "model", "revision": None, "fingerprint": former(model)}
    check_adapter(ref, adapter(tmp_path / "old", old))
    new = adapter(tmp_path / "new", ref.record(), seed=1)
    check_adapter(ref, new)
    merge(
        method="arithmetic",
        space="delta",
        adapters=[(tmp_path / "old", 0.5), (new, 0.5)],
        output=tmp_path / "out",
    )
    one_number(model)
    of_folder.cache_clear()
    from lingualift.backbone import checkpoint

    checkpoint._sha256.cache_clear()
    former.cache_clear()
    other = ref_of(model)
    for path in (tmp_path / "old", new, tmp_path / "out"):
        with refused(str(path), "made for the backbone", other.fingerprint[:12], mend="name that backbone"):
            check_adapter(other, path)


def test_a_commit_is_a_former_fingerprint_too():
    ref = BackboneRef("org/model", "org/model", "c" * 40, "float32", False, "f" * 64)
    assert ref.known_as("c" * 40)
    assert ref.known_as("f" * 64)
    assert not ref.known_as("d" * 40)
    assert not ref.known_as(None)


def test_the_mend_for_two_fingerprints_helps(tmp_path):
    one = adapter(tmp_path / "one", {"name": "tiny", "revision": None, "fingerprint": "1" * 64})
    two = adapter(tmp_path / "two", {"name": "tiny", "revision": None, "fingerprint": "2" * 64}, seed=1)
    given = {"method": "arithmetic", "space": "delta", "adapters": [(one, 0.5), (two, 0.5)]}
    file = two / "provenance.json"
    with refused("/two", "2" * 12, "1" * 12, mend=str(file)):
        merge(**given, output=tmp_path / "out")
    edit(file, lambda value: value["backbone"].pop("fingerprint"))
    merge(**given, output=tmp_path / "out")


def test_weights_of_another_name_count_and_a_model_without_any_is_refused(model):
    (model / "model.safetensors").rename(model / "model.fp32.safetensors")
    with refused("/model", "no weights"):
        of_folder(model)
    edit(model / "config.json", lambda value: value.update(transformers_weights="model.fp32.safetensors"))
    before = of_folder(model)
    tensors = load_file(model / "model.fp32.safetensors")
    save_file(
        {name: x + 1 for name, x in tensors.items()}, model / "model.fp32.safetensors", {"format": "pt"}
    )
    from lingualift.backbone import checkpoint

    of_folder.cache_clear()
    checkpoint._sha256.cache_clear()
    assert of_folder(model) != before


def test_an_adapter_beside_a_model_s_weights_is_refused(model):
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with refused("model/adapter_config.json", "adapter_config.json", "unasked"):
        ref_of(model)


def test_a_chat_template_counts_where_prompts_are_asked_by_it(model):
    template(model)
    plain = ref_of(model)
    asked = [find_backbone(Backbone(name=str(model), chat_template=True))]
    (model / "chat_template.jinja").write_text(TURNS.replace("|", "/"))
    asked.append(find_backbone(Backbone(name=str(model), chat_template=True)))
    assert len({json.dumps(ref.identity()) for ref in (plain, *asked)}) == 3
    assert ref_of(model).identity() == plain.identity()
