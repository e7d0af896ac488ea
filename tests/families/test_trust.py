"""Somebody's backbone folder: no code of it runs, and nothing that it names is fetched."""

import json
import shutil
import sys

import pytest

from builders.refusals import refused
from lingualift.backbone.loading import load_model
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone
from lingualift.errors import UserError


@pytest.fixture
def edited(backbone, tmp_path):
    """A backbone with a `payload.py` that says when it runs, and other words in its files."""

    def edit(name, config=None, tokenizer=None):
        folder = shutil.copytree(backbone("llama3").source, tmp_path / name)
        (folder / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        for file, more in (("config.json", config), ("tokenizer_config.json", tokenizer)):
            content = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({**content, **(more or {})}))
        return folder

    return edit


MAP = {
    "AutoConfig": "payload.C",
    "AutoModelForCausalLM": "payload.M",
    "AutoTokenizer": ["payload.T", "payload.T"],
}


@pytest.mark.parametrize(
    "more",
    [
        {"config": {"auto_map": MAP}},
        {"config": {"auto_map": MAP, "model_type": "payload"}},
        {"tokenizer": {"auto_map": {"AutoTokenizer": ["payload.T", "payload.T"]}}},
        {"tokenizer": {"auto_map": {"AutoTokenizer": ["payload.T", None]}, "tokenizer_class": "T"}},
        {"config": {"quantization_config": {"quant_method": "quark", "custom_mode": "payload"}}},
        {"config": {"quantization_config": {"quant_method": "payload"}}},
    ],
    ids=str,
)
def test_no_code_of_a_backbone_runs(edited, tmp_path, more):
    folder = edited("a", **more)
    try:
        load_model(find_backbone(Backbone(name=str(folder))))
    except UserError as error:
        assert str(folder) in str(error)  # noqa: PT017 - either is right
    assert not (tmp_path / "ran").exists()
    assert "payload" not in sys.modules


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "paged|org/kernel"},
        {"attn_implementation": {"": "org/kernel"}},
        {"experts_implementation": "org/kernel"},
    ],
    ids=str,
)
def test_a_kernel_that_a_backbone_names_is_refused(edited, named):
    ((key, kernel),) = named.items()
    kernel = kernel[""] if isinstance(kernel, dict) else kernel
    with refused("/a'", f"'{kernel}'", key.removeprefix("_"), mend="remove the key"):
        load_model(find_backbone(Backbone(name=str(edited("a", config=named)))))


def test_a_quantisation_that_is_none_is_refused(edited):
    for number, content in enumerate(({"a": 1}, {"quant_method": ["x"]}, {"quant_method": 5})):
        folder = edited(str(number), config={"quantization_config": content})
        with refused(f"/{number}'", "quantization_config", "`quant_method`", mend="remove the key"):
            load_model(find_backbone(Backbone(name=str(folder))))
