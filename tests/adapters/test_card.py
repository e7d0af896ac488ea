"""Model cards: what the hub reads in them, and that they hold no path of this machine."""

import ast

import pytest
import yaml
from huggingface_hub import ModelCard

from lingualift.adapters.card import CITATIONS, Card, as_code, as_line, as_word, is_hub_id, shown, table
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


HOSTILE = (
    'tiny"\nimport os; os.system("id")  # \x1b[2J<img src=x onerror=alert(1)>',
    'main"); __import__("os").system("id"); ("',
    "---\nbase_model: evil\n```\n<script>",
    "\\",
    "a" * 300,
    "\u2028x = 1",
)


def code_of(text):
    return ast.parse(text.split("```python\n")[1].split("\n```")[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_words_of_others_stay_words(text):
    made = card(
        config={**CONFIG, "source_encoder": text}, backbone={"name": text}, languages=(text,), tags=(text,)
    )
    pinned = card(backbone={"name": "org/model", "revision": text})
    for each in (made, pinned):
        body = code_of(each).body
        assert [type(line).__name__ for line in body] == ["ImportFrom"] * 2 + ["Assign"] * (len(body) - 2)
        held = {line.targets[0].id: line.value for line in body[2:]}
        assert set(held) <= {"backbone", "adapter", "tokenizer", "reader", "model"}
        assert ast.literal_eval(held["backbone"]) in (shown(text), "org/model")
        calls = [node.func for node in ast.walk(code_of(each)) if isinstance(node, ast.Call)]
        assert {func.attr for func in calls} == {"from_pretrained"}
        front = yaml.safe_load(each.split("\n---\n")[0].removeprefix("---\n"))
        assert front["library_name"] == "peft"
    assert ModelCard(made).data.to_dict().get("base_model") is None
    given = [node.keywords for node in ast.walk(code_of(pinned)) if isinstance(node, ast.Call)]
    assert {word.value.value for words in given for word in words} == {text}


def test_html_and_bars_of_others_are_text():
    assert as_line("` <img> `` <b>") == "` &#60;img> `` &#60;b>", "renderers pair runs of one length alone"
    assert as_line("see `a<b` & <i>\n\x1b[2J|x") == "see `a<b` &#38; &#60;i> \ufffd[2J|x"
    assert as_code("a`b\n``<i>") == "`a'b ''<i>`"
    assert as_word("a_b*[x](y)<i>`") == r"a_b\*\[x\](y)\<i\>\`"
    rows = table(("a", "b"), [("x|y\n| z", "<img src=x>")]).splitlines()
    assert rows[-1] == r"| x\|y \| z | &#60;img src=x> |"


def test_every_merge_method_can_be_cited():
    for name, method in METHODS.items():
        number = method.source.rsplit("/", 1)[1]
        assert f"eprint = {{{number}}}" in CITATIONS[method.source], name
