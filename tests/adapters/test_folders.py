"""Finding and opening adapter folders; inspecting them."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from builders.adapter_folders import PREFIX, config_of, raw, updates, write_folder, write_lora
from builders.refusals import refused
from lingualift.adapters import inspect, open_adapter
from lingualift.adapters.config import LoraSettings
from lingualift.adapters.structure import Module


def test_a_folder(tmp_path):
    adapter = open_adapter(write_lora(tmp_path / "a", dtype=torch.bfloat16))
    assert (adapter.kind, adapter.path, adapter.provenance) == ("lora", tmp_path / "a", None)
    assert adapter.modules["layers.0.q_proj"] == Module(
        "layers.0.q_proj",
        "linear",
        (f"{PREFIX}layers.0.q_proj.lora_A.weight", f"{PREFIX}layers.0.q_proj.lora_B.weight"),
        ((4, 5), (6, 4)),
        rank=4,
        scaling=2.0,
    )
    name = f"{PREFIX}layers.0.v_proj.lora_A.weight"
    assert adapter.read(name).dtype == "bfloat16"
    assert adapter.tensors[name].shape == (4, 5)


def test_other_files_in_place_of_an_adapter(tmp_path):
    with refused("/none", "no such folder"):
        open_adapter(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with refused("/empty", "no adapter_config.json"):
        open_adapter(tmp_path / "empty")
    write_lora(tmp_path / "outer" / "inner")
    with refused("/outer", "adapter_config.json", mend="inner"):
        open_adapter(tmp_path / "outer")
    bare = write_lora(tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    with refused("/bare", "no adapter_model.safetensors"):
        open_adapter(bare)
    for text in ("{", "[]", '{"a": ' * 5000):
        (bare / "adapter_config.json").write_text(text)
        with refused("adapter_config.json"):
            open_adapter(bare)


def test_a_pickle_is_refused_with_a_conversion_that_works(tmp_path, monkeypatch):
    path = write_lora(tmp_path / "a")
    torch.save(raw(path), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").rename(tmp_path / "kept")
    with refused("/adapter_model.bin", "a pickle", "adapter_model.safetensors") as caught:
        open_adapter(path)
    line = caught.value.mend.partition("python -c ")[2].strip('"')
    monkeypatch.chdir(path)
    exec(line)
    expected = torch.load(path / "adapter_model.bin", weights_only=True)
    assert all(np.array_equal(open_adapter(path).read(name), x) for name, x in expected.items())


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    path = write_lora(tmp_path / "a")
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with refused("/adapter_model.bin", "a pickle", mend="convert it"):
        open_adapter(path)


def test_the_hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--org--name"
    commit = "a" * 40
    write_lora(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in (repository, "org/name"):
        assert len(open_adapter(given).modules) == 2
    with refused("org/other", "hub's cache", mend="hf download org/other"):
        open_adapter("org/other")
    with refused("org/na me", "hub's cache"):
        open_adapter("org/na me")
    (repository / "refs" / "main").unlink()
    assert len(open_adapter(repository).modules) == 2
    shutil.copytree(repository / "snapshots" / commit, repository / "snapshots" / ("b" * 40))
    with refused("/models--org--name", "no single adapter", "one snapshot"):
        open_adapter(repository)


@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_and_scalings_are_read_as_peft_does(tmp_path, stabilised):
    from peft import LoraConfig, get_peft_model

    root = torch.nn.ModuleDict()
    names = ["layers.1.q_proj", "layers.11.q_proj", "layers.1.sub.q_proj", "xq_proj", "layers.2.v_proj"]
    for name in names:
        parent = root
        *parts, last = name.split(".")
        for part in parts:
            if part not in parent:
                parent[part] = torch.nn.ModuleDict()
            parent = parent[part]
        parent[last] = torch.nn.Linear(6, 6)
    config = {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": stabilised,
        "rank_pattern": {"layers.1.q_proj": 2, "q_proj": 3, r".*\.2\..*": 5},
        "alpha_pattern": {"1.q_proj": 7, "sub.q_proj": 9},
    }
    model = get_peft_model(root, LoraConfig(target_modules=names, **config))
    settings = LoraSettings(config, tmp_path)
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        assert settings.rank(name) == layer.r["default"], name
        assert settings.scaling(name) == pytest.approx(layer.scaling["default"], rel=1e-15), name


def test_inspect_reports_norms_and_cosines(tmp_path):
    paths = [write_lora(tmp_path / str(i), seed=i, alpha=4 + i) for i in range(2)]
    found = inspect(paths)
    one, two = (updates(path) for path in paths)
    for facts, update in zip(found.adapters, (one, two), strict=True):
        for module in facts.modules:
            assert module.norm == pytest.approx(np.linalg.norm(update[module.name]), rel=1e-6)
        assert facts.norm == pytest.approx(
            np.sqrt(sum(np.linalg.norm(x) ** 2 for x in update.values())), rel=1e-6
        )
    flat = [np.concatenate([x.ravel() for x in update.values()]) for update in (one, two)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert found.cosines[0][1] == found.cosines[1][0] == pytest.approx(cosine, rel=1e-6)
    assert found.cosines[0][0] == pytest.approx(1)
    assert found.mergeable
    assert found.shared_initialisation is True
    first = found.adapters[0]
    assert (first.kind, first.ranks, first.scalings, first.formats) == ("lora", (4,), (1.0,), ("F32",))
    assert first.parameters == 4 * (5 + 6 + 5 + 3)
    assert first.backbone["name"] == "tiny"
    assert json.loads(json.dumps(found.to_dict()))["mergeable"] is True


def test_inspect_says_why_not(tmp_path):
    good, dora = write_lora(tmp_path / "good"), write_lora(tmp_path / "dora", use_dora=True)
    found = inspect([good, dora])
    assert not found.mergeable
    assert "DoRA" in found.obstacles[0].reason
    assert found.obstacles[0].mend == "train with plain LoRA"
    assert found.adapters[1].modules == ()
    other = write_lora(tmp_path / "other", base_model_name_or_path="else", use_rslora=True)
    assert "backbone is 'else'" in inspect([good, other]).obstacles[0].reason
    assert inspect(good).mergeable
    with refused("inspect", "no adapter"):
        inspect([])


def test_inspect_tells_draws_apart(tmp_path):
    one = write_lora(tmp_path / "one")
    random = torch.Generator().manual_seed(5)
    drawn = {name: torch.randn(x.shape, generator=random) for name, x in raw(one).items()}
    two = write_folder(tmp_path / "two", drawn, config_of(one))
    found = inspect([one, two])
    assert found.shared_initialisation is False
    assert found.mergeable, "a warning in factor space, no obstacle"
    known = [
        write_lora(tmp_path / f"known{i}", seed=i, provenance={"initialisation": draw})
        for i, draw in enumerate("aab")
    ]
    assert inspect(known[:2]).shared_initialisation is True
    assert inspect(known).shared_initialisation is False
    assert inspect(known).evidence == "provenance"


def test_inspect_verifies_hashes(tmp_path):
    path = write_lora(tmp_path / "a", provenance={"weights_sha256": "0" * 64})
    with refused("adapter_model.safetensors", "sha256"):
        inspect([path])


def test_inspect_other_kinds(tmp_path):
    vectors = {f"{PREFIX}layers.0.k_proj.ia3_l": torch.full((4, 1), 1.5)}
    ia3 = write_folder(tmp_path / "ia3", vectors, {"peft_type": "IA3", "target_modules": ["k_proj"]})
    found = inspect(ia3).adapters[0]
    assert (found.kind, found.norm) == ("ia3", pytest.approx(1.0))
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "num_layers": 1, "token_dim": 3}
    prefix = write_folder(tmp_path / "prefix", {"prompt_embeddings": torch.ones(2, 6)}, config)
    found = inspect(prefix).adapters[0]
    assert [module.name for module in found.modules] == ["layers.0.key", "layers.0.value"]
    assert found.norm == pytest.approx(12**0.5)
    bad = write_folder(tmp_path / "bad", {"prompt_embeddings": torch.ones(2, 5)}, config)
    assert "has shape (2, 5)" in inspect(bad).obstacles[0].reason
