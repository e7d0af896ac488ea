"""`ll.predict` with rows of every head's kind beside their translations; FLARE-MT makes its own source side."""

import json

import pytest

import lingualift as ll
from builders import paired, tiny
from builders.refusals import refused
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring
from lingualift.evaluation.runner import evaluate


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def given(source, language, task):
    """Both sides of paired rows without the labels, which answer nothing here."""
    sides = [rows_of(source.base / where / "train.jsonl") for where in (language, f"beside-{language}")]
    return [[{k: v for k, v in row.items() if k != task.gold_column} for row in side] for side in sides]


def numbers(rows):
    return [(row["id"], row["prediction"], row.get("scores"), row.get("generated")) for row in rows]


@pytest.mark.parametrize(
    ("name", "task", "language"),
    [
        ("llama", "xquad", "de"),
        ("t5", "nusax", "id"),
        ("xlmr", "nusax", "id"),
        ("xlmr", "xcopa", "id"),
        ("bert", "xquad", "de"),
    ],
)
def test_new_rows_get_the_answers_of_the_evaluation(tmp_path, name, task, language):
    backbone = str(tiny.build(name, tmp_path / "backbone"))
    source = paired.world(tmp_path, task, language)
    chosen, examples = source.labelled(language, "train")
    ref = paired.headed(find_backbone(Backbone(name=backbone)), source, examples)
    folder = paired.flare_folder(ref, name, tmp_path / "flare")
    expected = evaluate(ref, folder, chosen, examples, Scoring()).predictions
    rows, beside = given(source, language, chosen)
    asked = {"backbone": backbone, "task": task, "language": language, "rows": rows, "adapter": folder}
    found = ll.predict(**asked, beside=beside, beside_language="en")
    assert numbers(found) == [(one.id, one.prediction, one.scores, one.text) for one in expected]
    with refused("/flare", "translation", mend="`beside` (--beside)"):
        ll.predict(**asked)


def test_flare_mt_answers_new_rows_alone_and_refuses_their_translations(tmp_path):
    backbone = str(tiny.build("llama", tmp_path / "backbone"))
    source = paired.world(tmp_path, "nusax", "id")
    chosen, examples = source.labelled("id", "train")
    ref = paired.headed(find_backbone(Backbone(name=backbone)), source, examples)
    encoder = str(paired.translation_model(tmp_path / "nllb"))
    folder = paired.flare_folder(ref, "llama", tmp_path / "flare", source_encoder=encoder)
    expected = evaluate(ref, folder, chosen, examples, Scoring()).predictions
    rows, beside = given(source, "id", chosen)
    asked = {"backbone": backbone, "task": "nusax", "language": "id", "rows": rows, "adapter": folder}
    assert numbers(ll.predict(**asked)) == [(one.id, one.prediction, one.scores, None) for one in expected]
    with refused("beside (--beside)", "/flare makes the source side", mend="leave it out"):
        ll.predict(**asked, beside=beside, beside_language="en")
