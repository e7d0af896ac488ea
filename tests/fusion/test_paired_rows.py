"""Rows with their source side: paired by id, read by the same task, without a look at the source's gold."""

import json
from dataclasses import replace

import pytest

from builders import paired
from builders.refusals import refused
from lingualift.config import Data
from lingualift.data.datasets import Beside, Examples

ROWS = [{"id": f"r{number}", "text": f"kata {number}", "label": "positive"} for number in range(4)]
ENGLISH = [{"id": f"r{number}", "text": f"word {number}"} for number in (2, 0, 9, 1, 3)]


def source(folder, rows, english, task="nusax", **more):
    paired.write(folder / "id" / "train.jsonl", rows)
    paired.write(folder / "mt-id" / "train.jsonl", english)
    beside = Beside(Data(files="mt-{language}/{split}.jsonl"), "en")
    return Examples(task, Data(files="{language}/{split}.jsonl"), folder, beside=beside, **more)


def test_they_pair_by_id_in_the_order_of_the_rows(tmp_path):
    found = source(tmp_path, ROWS, ENGLISH).rows("id", "train")
    alone = Examples("nusax", Data(files="{language}/{split}.jsonl"), tmp_path).rows("id", "train")
    assert [row.id for row in found] == [row["id"] for row in ROWS] == [row.source.id for row in found]
    assert [row.source.parts for row in found] == [(f"word {number}",) for number in range(4)]
    assert all(row.source.language == "en" and row.language == "id" for row in found)
    assert found[1].source.prompt == "word 1\nSentiment:"
    assert [(row.prompt, row.gold) for row in found] == [(row.prompt, row.gold) for row in alone]


def test_the_gold_of_the_source_side_is_not_read(tmp_path):
    poison = [{**row, "label": {"no": "label"}} for row in ENGLISH]
    found = source(tmp_path / "a", ROWS, poison).rows("id", "train")
    assert found == source(tmp_path / "b", ROWS, ENGLISH).rows("id", "train")
    for row in found:
        assert (row.source.gold, row.source.completion, row.source.starts, row.source.source) == (
            (),
            "",
            (),
            None,
        )


def test_the_prompt_of_the_source_side_is_that_of_its_language(tmp_path):
    rows = [{"id": "a", "question": "Wie viele?", "answer": "1 #### 1", "answer_number": 1}]
    english = [{"id": "a", "question": "How many?"}]
    task = source(tmp_path, rows, english, task="mgsm", prompt="native", prompt_language="target")
    paired.write(tmp_path / "de" / "train.jsonl", rows)
    paired.write(tmp_path / "mt-de" / "train.jsonl", english)
    (found,) = task.rows("de", "train")
    spoken = Examples("mgsm", Data(files="mt-de/train.jsonl"), tmp_path, "native", "en").get_task()
    expected = spoken.example({"id": "a", "question": "How many?"}, "en")
    assert found.source.prompt == expected.prompt
    assert found.prompt.split("\n")[0] != found.source.prompt.split("\n")[0]


@pytest.mark.parametrize(
    ("english", "found"),
    [
        ([row for row in ENGLISH if row["id"] not in ("r1", "r3")], "id 'r1', 'r3'; one"),
        ([*ENGLISH, ENGLISH[0]], ":6: id 'r2' stands in row 1"),
        ([{**row, "text": " "} for row in ENGLISH], ":1: column 'text' is empty"),
        ([{"text": row["text"]} for row in ENGLISH], "id 'r0', 'r1', 'r2', 'r3'; one"),
    ],
)
def test_what_does_not_pair_is_refused(tmp_path, english, found):
    with refused("/mt-id/train.jsonl", found):
        source(tmp_path, ROWS, english).rows("id", "train")


def test_rows_without_ids_pair_by_their_lines(tmp_path):
    rows = [{"premise": f"p{n}", "hypothesis": "h", "label": 0} for n in range(3)]
    english = [{"premise": f"e{n}", "hypothesis": "h"} for n in range(3)]
    found = source(tmp_path / "a", rows, english, task="xnli").rows("id", "train")
    assert [row.source.parts[0] for row in found] == ["e0", "e1", "e2"]
    translated = [
        {**row, "id": number} for number, row in enumerate(rows, 1)
    ]  # as `lingualift translate` writes it
    found = source(tmp_path / "b", translated[1:], english, task="xnli").rows("id", "train")
    assert [row.source.parts[0] for row in found] == ["e1", "e2"]
    with refused("/train.jsonl", "3 rows; 2 as in", mend="`id`"):
        source(tmp_path / "c", rows[1:], english, task="xnli").rows("id", "train")


@pytest.mark.parametrize("use", ["beside", "joined", "instead"])
def test_a_sample_of_rows_without_ids_pairs_by_the_lines_of_the_whole_files(tmp_path, use):
    rows = [{"premise": f"p{n}", "hypothesis": "h", "label": 0} for n in range(9)]
    english = [{"premise": f"e{n}", "hypothesis": "h"} for n in range(9)]

    def sampled(folder, english):
        task = source(folder, rows, english, task="xnli")
        data = task.data.model_copy(update={"max_rows": {"train": 4}})
        return replace(task, data=data, beside=replace(task.beside, use=use)).rows("id", "train")

    found = sampled(tmp_path / "a", english)
    assert len(found) == 4
    for row in found:
        number = int(row.id) - 1
        texts = {"beside": (f"p{number}", "h"), "instead": (f"e{number}", "h")}
        assert row.parts == texts.get(use, (f"p{number}\ne{number}", "h\nh"))
        assert row.source is None or row.source.parts == (f"e{number}", "h")
    with refused("/train.jsonl", "10 rows; 9 as in", mend="`id`"):
        sampled(tmp_path / "b", [*english, english[0]])


def test_what_stands_beside_is_part_of_what_determines_the_rows(tmp_path):
    one = source(tmp_path / "a", ROWS, ENGLISH)
    again = source(tmp_path / "b", ROWS, ENGLISH)
    other = source(tmp_path / "c", ROWS, [{**row, "text": "other"} for row in ENGLISH])
    alone = Examples("nusax", Data(files="{language}/{split}.jsonl"), tmp_path / "a")
    names = [json.dumps(each.identity("id", "train"), sort_keys=True) for each in (one, again, other, alone)]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert "beside" not in alone.identity("id", "train")


def test_text_without_labels_has_no_source_side(tmp_path):
    task = source(tmp_path, ROWS, ENGLISH, task="causal-lm")
    with refused("'causal-lm'", "no labels"):
        task.rows("id", "train")
