"""Model cards: what the hub reads in them, and that they hold no path of this machine."""

import yaml
from huggingface_hub import ModelCard

from lingualift.adapters.card import CITATIONS, Card, is_hub_id, shown, table
from lingualift.merging.methods import METHODS

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}


def card(**more):
    facts = {"title": "t", "summary": "s", "config": CONFIG, "backbone": {"name": "org/model"}, **more}
    return Card(**facts).text()


def test_front_matter_is_the_hubs():
    text = card(languages=("swh_Latn", "no", "eng", "sw"), datasets=("org/rows",), tags=("merge", "lora"))
    data = ModelCard(text).data
    assert data.base_model == "org/model"
    assert data.language == ["sw", "nb", "en"]
    assert data.datasets == ["org/rows"]
    assert data.tags == ["lingualift", "lora", "merge"]
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.license is None
    assert yaml.safe_load(text.split("---\n")[1]) == data.to_dict()


def test_what_is_not_known_is_left_out(tmp_path):
    folder = tmp_path / "secret" / "backbone"
    folder.mkdir(parents=True)
    text = card(backbone={"name": str(folder)}, config={"peft_type": "IA3"})
    assert ModelCard(text).data.to_dict() == {"library_name": "peft", "tags": ["lingualift", "ia3"]}
    assert "secret" not in text
    assert 'backbone = "backbone"  # the folder of the backbone' in text
    assert "## Citation" not in text


def test_a_revision_is_pinned_in_the_code():
    assert 'from_pretrained(backbone, revision="abc")' in card(backbone={"name": "gpt2", "revision": "abc"})


def test_names_of_the_hub_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "x").mkdir(parents=True)
    assert is_hub_id("gpt2")
    assert is_hub_id("org/model-7b.v1")
    for path in ("/abs/model", "./model", "a/b/c", "models/x", "", None):
        assert not is_hub_id(path), path
    assert [shown(name) for name in ("org/model", "/abs/model", "models/x", None)] == [
        "org/model",
        "model",
        "x",
        "BACKBONE",
    ]


def test_a_bar_in_a_cell_does_not_end_it():
    assert table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_every_merge_method_can_be_cited():
    for name, method in METHODS.items():
        number = method.source.rsplit("/", 1)[1]
        assert f"eprint = {{{number}}}" in CITATIONS[method.source], name
