"""A look before the money is spent: every planted defect is found, and told where it is."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch

import lingualift as ll
import lingualift.checking as checking
from builders.refusals import check_refusal, refused
from builders.worlds import experiment, read_jsonl, unmeasured, write_experiment, write_jsonl
from lingualift.backbone.loading import load_backbone
from lingualift.checking.backbone import lengths
from lingualift.checking.findings import Finding, by_grade, in_lengths, in_scores, in_spelling
from lingualift.checking.records import LanguageRecord, TaskRecord, Vanilla
from lingualift.checking.spelling import Spelling
from lingualift.config import Data, Scoring, TrainingRoles
from lingualift.data.datasets import Examples
from lingualift.data.rows import load_examples
from lingualift.encoding.text import encode_pair
from lingualift.evaluation.perplexity import mean_nats
from lingualift.evaluation.runner import evaluate
from lingualift.evaluation.runner import predict as answer
from lingualift.tasks import get_task

AMHARIC = "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው"
FOLDERS = {"mini-sentiment": "sentiment", "mini-qa": "qa"}
TEXTS = [
    "the book is good .",
    "kitabu kiko jikoni .",
    "so bad",
    "the book is good and the red book is bad . " * 5,
]


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch):
    """Looks in this process measure no steps, which decides nothing here; those of the command line do."""

    monkeypatch.setattr("lingualift.checking.estimate", unmeasured)


@pytest.fixture
def world(data, tmp_path):
    """Data of one's own, to plant something in."""
    return shutil.copytree(data, tmp_path / "data")


def merging(world, **changes):
    methods = ["vanilla", "source-ft", {"method": "adamergex", "weight": 1.0}]
    return experiment(world, **{"methods": methods, **changes})


def look(world, rows=12, **changes):
    return ll.check(write_experiment(world.parent / "e.yaml", merging(world, **changes)), rows=rows)


def told(found, grade=None):
    return [f"{one.grade} {one.where}: {one.found}" for one in found.findings if grade in (None, one.grade)]


def change(path, edit):
    return write_jsonl(path, edit(read_jsonl(path)))


def in_amharic(row, column="text"):
    return {**row, column: AMHARIC}


# -- what is planted is found


def test_test_items_in_reference_text_are_found_with_both_lines(world):
    stolen = [row["text"] for row in read_jsonl(world / "sentiment/sw/test.jsonl")][3:5]
    extra = [{"text": f"Wrote {stolen[0].upper()} !"}, {"text": stolen[1]}]
    change(world / "reference/sw/train.jsonl", lambda rows: [*rows, *extra])
    found = look(world)
    (finding,) = [one for one in found.findings if "stand in" in one.found]
    assert finding.where == "mini-sentiment sw"
    assert finding.found == "2 of 16 test items stand in the reference text (1 as a whole row)"
    assert finding.grade == "error"  # an eighth of the test
    for line, other, example in zip((4, 5), (61, 62), finding.examples, strict=True):
        assert f"sentiment/sw/test.jsonl:{line} in " in example
        assert f"reference/sw/train.jsonl:{other}: " in example


def test_a_single_test_item_in_the_text_is_a_warning(world):
    row = read_jsonl(world / "sentiment/sw/test.jsonl")[0]
    change(world / "reference/sw/train.jsonl", lambda rows: [*rows, row])
    assert (
        "warning mini-sentiment sw: 1 of 16 test items stand in the reference text (1 as a whole row)"
        in told(look(world))
    )


def test_test_rows_among_training_rows_are_found(world):
    row = read_jsonl(world / "sentiment/en/test.jsonl")[0]
    change(world / "sentiment/en/train.jsonl", lambda rows: [*rows, {**row, "id": "again"}])
    assert any("1 of 16 test items stand in the train rows of en" in one for one in told(look(world)))


def test_rows_put_aside_that_share_a_text_with_test_rows_are_kept_together_by_it(world):
    for file in world.glob("sentiment/*/test.jsonl"):
        change(file, lambda rows: [*rows, *({**row, "id": f"{row['id']}-again"} for row in rows)])
    data = {"files": str(world / "sentiment/{language}/{split}.jsonl")}
    tasks = [{"task": "mini-sentiment", "data": data, "tune_on": "fr"}]
    aside = data["validation"] = {"of": "test", "rows": 8}
    changes = {
        "tasks": tasks,
        "methods": ["source-ft", "adamergex"],
    }  # a weight is searched on validation rows
    (finding,) = [one for one in look(world, **changes).findings if "stand in" in one.found]
    assert finding.grade == "error"
    assert "group_by" in finding.mend
    aside["group_by"] = "text"
    found = look(world, **changes)
    assert [one for one in found.findings if "stand in" in one.found] == []
    assert any("validation" in one.against for one in found.overlaps)


def test_source_rows_left_untranslated_in_the_test_are_found(world):
    row = read_jsonl(world / "sentiment/en/train.jsonl")[0]
    change(world / "sentiment/sw/test.jsonl", lambda rows: [{**rows[0], "text": row["text"]}, *rows[1:]])
    assert any(
        "mini-sentiment sw: 1 of 16 test items stand in the train rows of en" in one
        for one in told(look(world))
    )


def test_a_label_that_training_never_sees_is_an_error(world):
    change(
        world / "sentiment/en/train.jsonl", lambda rows: [row for row in rows if row["label"] == "positive"]
    )
    assert told(look(world), "error") == [
        "error mini-sentiment en train: no row is labelled 'negative', and test rows are"
    ]


def test_a_label_that_the_test_never_asks_for_is_a_warning(world):
    change(
        world / "sentiment/sw/test.jsonl", lambda rows: [row for row in rows if row["label"] == "positive"]
    )
    assert "warning mini-sentiment sw test: no row is labelled 'negative'" in told(look(world))


def test_a_label_that_the_tuning_rows_lack_is_a_warning(world):
    change(
        world / "sentiment/fr/validation.jsonl",
        lambda rows: [row for row in rows if row["label"] == "positive"],
    )
    found = look(world, methods=["source-ft", "adamergex"], weights={"tune_on": "fr"})
    assert told(found, "error") == []
    assert "warning mini-sentiment fr validation: no row is labelled 'negative'" in told(found)


def test_a_language_that_the_tokenizer_cannot_spell_is_an_error(world):
    for place in ("sentiment", "reference"):
        shutil.copytree(world / place / "sw", world / place / "am")
        for path in (world / place / "am").iterdir():
            change(path, lambda rows: list(map(in_amharic, rows)))
    found = look(world, languages={"source": "en", "targets": ["sw", "am"]})
    (finding,) = [one for one in found.errors if one.where == "am"]
    assert finding.found == "the tokenizer loses 100% of the letters and writes 100% of its tokens as unknown"
    assert not any(one.where == "sw" for one in found.findings)
    by_code = {one["language"]: one for one in found.to_dict()["languages"]}
    assert by_code["am"]["bits_per_byte"] is None  # unknown tokens are cheap to predict
    assert by_code["sw"]["bits_per_byte"] > 0


def test_prompts_that_are_cut_are_counted(world):
    change(world / "sentiment/sw/test.jsonl", lambda rows: [{**rows[0], "text": "so bad . " * 8}, *rows[1:]])
    found = look(world, rows=100, scoring={"max_length": 24})
    (finding,) = [one for one in found.findings if "longer than" in one.found]
    # the beginning, 24 words, `Rating:` in two tokens, the answer
    assert finding.found == (
        "up to 6.25% of the test prompts are longer than 24 tokens (the longest has 28) and lose their beginning"
    )
    assert finding.where == "mini-sentiment sw"


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda rows: [{"id": row["id"], "label": row["label"]} for row in rows], "no column 'text'"),
        (lambda rows: [*rows[:2], {"id": "x", "text": "well ."}], "test.jsonl:3: column 'label'"),
        (lambda rows: [*rows[:2], {**rows[2], "label": "great"}], "test.jsonl:3: label is 'great'"),
    ],
)
def test_what_a_plan_refuses_is_refused(cli, world, plant, found):
    change(world / "sentiment/sw/test.jsonl", plant)
    path = write_experiment(world.parent / "e.yaml", merging(world))
    check_refusal(cli("check", path), "sw/test.jsonl", found)


def test_a_file_that_is_not_there_is_refused(cli, world):
    (world / "reference/en/train.jsonl").unlink()
    path = write_experiment(world.parent / "e.yaml", merging(world))
    check_refusal(cli("check", path), "reference/en/train.jsonl", "not there", "'en'")


def test_a_cell_that_stays_empty_is_told(world):
    (world / "reference/sw/train.jsonl").unlink()
    found = told(look(world), "warning")
    assert any(line.startswith("warning mini-sentiment sw: adamergex stays empty: ") for line in found)


# -- what is measured is right


@pytest.mark.parametrize("name", ["mini", "bpe"])
@pytest.mark.parametrize("window", [7, 512])
def test_likelihood_is_that_of_one_window_at_a_time(request, name, window):
    model, tokenizer = load_backbone(request.getfixturevalue(name))
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), window - 1):
            part = [tokenizer.bos_token_id, *ids[start : start + window - 1]]
            with torch.inference_mode():
                logits = model(torch.tensor([part])).logits[0].double()
            chosen = torch.log_softmax(logits, -1)[torch.arange(len(part) - 1), torch.tensor(part[1:])]
            total, count = total - chosen.sum().item(), count + len(part) - 1
    told = []
    found = mean_nats(
        request.getfixturevalue(name), model, tokenizer, TEXTS, window, "en", lambda *at: told.append(at)
    )
    assert found == pytest.approx(total / count, rel=1e-4)
    assert count == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    assert told[-1][0] == told[-1][1]


def test_bits_are_those_of_the_whole_sample(world):
    one = look(world).languages[0]
    bits = one.nats * one.spelling.tokens / math.log(2)
    assert one.bits_per_byte * one.spelling.bytes == pytest.approx(bits)
    assert one.bits_per_character * one.spelling.characters == pytest.approx(bits)
    assert math.log(one.perplexity) == pytest.approx(one.nats)


def test_the_plain_backbones_score_is_that_of_evaluate(world, mini):
    raw = merging(world)
    found = look(world, rows=100)
    data = ll.load_experiment(world.parent / "e.yaml").tasks[0].data
    for one in found.tasks:
        task, examples = Examples("mini-sentiment", data, world).labelled(one.language, "validation")
        expected = evaluate(mini, None, task, examples, Scoring()).scores["accuracy"]
        assert one.vanilla == Vanilla(
            "validation", 12, "accuracy", expected["score"], expected["stderr"], 50.0, 0
        )
        assert one.vanilla.headroom == 100 - expected["score"]
    assert [one.language for one in found.tasks] == ["en", *raw["languages"]["targets"]]


def test_the_sample_is_of_validation_rows_else_training_rows_else_test_rows(world):
    (world / "sentiment/fr/validation.jsonl").unlink()
    for split in ("train", "validation"):
        (world / f"sentiment/sw/{split}.jsonl").unlink()
    assert {one.language: one.vanilla.split for one in look(world).tasks} == {
        "en": "validation",
        "fr": "train",
        "sw": "test",
    }


def test_test_items_are_looked_for_in_their_own_language_and_task_only(world):
    tasks = [
        {"task": name, "data": {"files": f"{world}/{folder}/{{language}}/{{split}}.jsonl"}}
        for name, folder in FOLDERS.items()
    ]
    found = look(world, rows=2, tasks=tasks)
    assert {(one.language, one.against, one.texts) for one in found.overlaps if one.task == "mini-qa"} == {
        (language, *against)
        for language in ("en", "fr", "sw")
        for against in (("reference text", 60), ("train rows of en", 48))
    }
    assert len(found.overlaps) == 12
    assert {(one.task, one.vanilla.chance) for one in found.tasks} == {("mini-sentiment", 50), ("mini-qa", 0)}


@pytest.mark.parametrize("name", FOLDERS)
def test_lengths_are_those_from_which_on_a_prompt_is_cut(bpe, world, name):
    model, tokenizer = load_backbone(bpe)
    task, data = get_task(name), Data(files=f"{FOLDERS[name]}/en/{{split}}.jsonl")
    for row in load_examples(task, data, "en", "test", world)[:4]:
        (needed,) = lengths("decoder", tokenizer, task, [row], "train")
        for room, cut in ((needed, False), (needed - 1, True)):
            assert (encode_pair(tokenizer, row.prompt, row.answer, room - 1).truncated > 0) == cut
        (needed,) = lengths("decoder", tokenizer, task, [row], "test")
        for room, cut in ((needed, 0), (needed - 1, 1)):
            assert answer(bpe, model, tokenizer, task, [row], Scoring(max_length=room))[1] == cut


@pytest.mark.parametrize("aligned", [True, False])
def test_tokens_relative_to_the_source_are_of_translations_where_there_are_any(world, aligned):
    raw = merging(world)
    raw["reference"]["data"]["aligned_on"] = "id" if aligned else None
    found = look(world, rows=100, reference=raw["reference"])
    en, _, sw = found.languages
    assert (en.texts, sw.texts, sw.spelling.texts, sw.tokens) == (60, 60, 60, sw.spelling.tokens)
    assert (en.relative, sw.parallel, en.parallel) == (None, aligned, aligned)
    words = {one.language: one.spelling.tokens / one.spelling.words for one in (en, sw)}
    expected = sw.spelling.tokens / en.spelling.tokens if aligned else words["sw"] / words["en"]
    assert sw.relative == pytest.approx(expected)


def test_without_reference_text_the_tasks_own_text_is_read(world):
    found = look(world, methods=["vanilla"], reference=None)
    assert {(one.origin, one.texts) for one in found.languages} == {("mini-sentiment", 16)}


def test_counts_are_of_the_rows_that_the_experiment_reads(world):
    tuned = [{"method": "adamergex"}, "source-ft", "target-ft"]
    found = look(world, methods=tuned, weights={"tune_on": "fr"})
    rows = {one.language: dict(one.rows) for one in found.tasks}
    assert rows["en"] == {"train": 48, "test": 16}
    assert rows["fr"] == {"train": 48, "validation": 12, "test": 16}
    assert rows["sw"] == {"train": 48, "test": 16}
    for one in found.tasks:
        assert sum(one.labels["test"].values()) == 16


# -- what is judged


def language(**changes):
    spelling = Spelling(10, 100, 50, 300, 350, 0, 0, 300, 0)
    names = set(Spelling.__dataclass_fields__) & set(changes)
    spelling = replace(spelling, **{name: changes.pop(name) for name in names})
    return replace(LanguageRecord("xx", "reference", 10, spelling, True, 1.0, True, 20, 1.0), **changes)


@pytest.mark.parametrize(
    ("changes", "grades"),
    [
        ({}, []),
        ({"lost": 3}, []),
        ({"lost": 4}, ["warning"]),
        ({"lost": 31}, ["error"]),
        ({"unknown": 2}, ["warning"]),
        ({"pieces": 10}, []),
        ({"pieces": 11}, ["warning"]),
        ({"relative": 3.0}, []),
        ({"relative": 3.1}, ["warning"]),
        ({"relative": None}, []),
        ({"nats": math.nan}, ["error"]),
    ],
)
def test_spelling_is_judged_by_its_thresholds(changes, grades):
    assert [one.grade for one in in_spelling(language(**changes))] == grades


def task(code="sw", score=60.0, stderr=3.0, malformed=0, longest=20, **cut):
    vanilla = Vanilla("validation", 100, "accuracy", score, stderr, 50.0, malformed)
    return TaskRecord(
        "t", code, {}, {}, {"train": 100, "test": 128}, {"train": 0, "test": 0, **cut}, longest, vanilla
    )


@pytest.mark.parametrize(
    ("one", "grades"),
    [
        (task(), []),
        (task(score=95.0), []),
        (task(score=95.1), ["warning"]),
        (task("en", score=100.0, stderr=0.0), []),
        (task(score=56.0), ["note"]),
        (task(score=56.1), []),
        (task(score=50.0, stderr=None), ["note"]),
        (task(malformed=51), ["note"]),
        (task(score=20.0, malformed=51), ["note"]),
    ],
)
def test_room_is_judged_by_its_thresholds(one, grades):
    assert [finding.grade for finding in in_scores([one], "en")] == grades


def test_languages_with_one_finding_share_it():
    (finding,) = in_scores([task("fr", 99.0), task("sw"), task("de", 97.5)], "en")
    assert (finding.where, finding.found) == ("t fr, de", "the plain backbone scores 97.5 to 99.0")


@pytest.mark.parametrize(
    ("longest", "context", "expected"), [(64, 64, 0), (65, 64, 1), (65, None, 0), (999, 128, 0)]
)
def test_prompts_beyond_the_backbones_context_are_told(longest, context, expected):
    training = TrainingRoles(task={"steps": 1, "max_length": 100})
    assert len(list(in_lengths([task(longest=longest)], training, context))) == expected


def test_translated_rows_are_held_against_the_length_of_the_second_stage(world):
    training = {"task": {"steps": 2, "max_length": 64}, "translated": {"steps": 2, "max_length": 16}}
    rows = str(world / "sentiment/{language}/{split}.jsonl")
    tasks = [
        {"task": "mini-sentiment", "data": {"files": rows}, "translated": {"into_targets": {"files": rows}}}
    ]
    found = look(world, tasks=tasks, methods=["source-ft", "translate-train"], training=training)
    (cut,) = [one for one in found.findings if "lose their beginning" in one.found]
    assert "train prompts are longer than 16 tokens" in cut.found
    assert "raise `training.translated.max_length`" in cut.mend
    assert "en" not in re.findall(r"\w+", cut.where.removeprefix("mini-sentiment"))
    methods = ["source-ft", "target-ft", "translate-train"]
    found = look(world, tasks=tasks, methods=methods, training=training)
    assert any("longer than 16 tokens" in one.found for one in found.findings)
    training["task"]["max_length"] = 16
    (cut,) = [
        one
        for one in look(world, tasks=tasks, methods=methods, training=training).findings
        if "train prompts" in one.found
    ]
    assert "`training.task.max_length` or `training.translated.max_length`" in cut.mend


def test_the_gravest_comes_first():
    grades = ("note", "error", "warning", "error")
    sorted_ = by_grade([Finding(grade, str(place), "", "", "") for place, grade in enumerate(grades)])
    assert [(one.grade, one.where) for one in sorted_] == [
        ("error", "1"),
        ("error", "3"),
        ("warning", "2"),
        ("note", "0"),
    ]


# -- the command


def test_the_command_shows_tables_findings_and_the_next_step_and_writes_nothing(cli, data, inside):
    write_experiment(inside / "e.yaml", merging(data))
    done = cli("check", "e.yaml", "--rows", 12)
    assert done.code == 0, done.err
    for said in ("per word", "× en", "bits/char", "mini-sentiment: rows, accuracy", "positive / negative"):
        assert said in done.out
    assert "overlap: 48 test items, 0 of them found" in done.out
    assert "next: lingualift plan e.yaml" in done.err
    assert [path.name for path in inside.iterdir()] == ["e.yaml"]
    assert done.err.count("lingualift") == 1


@pytest.mark.slow  # measures steps, as does what is shown
def test_an_error_exits_with_2_and_one_message_after_the_tables(cli, world):
    change(
        world / "sentiment/en/train.jsonl", lambda rows: [row for row in rows if row["label"] == "positive"]
    )
    path = write_experiment(world.parent / "e.yaml", merging(world))
    done = cli("check", path, "--rows", 4)
    check_refusal(done, "e.yaml", "mini-sentiment en train", "'negative'", "positive, negative")
    assert "error  mini-sentiment en train" in done.out
    assert "next:" not in done.err


@pytest.mark.slow  # measures steps, as does what is shown
def test_json_holds_everything_and_is_what_python_gets(cli, data, inside):
    path = write_experiment(inside / "e.yaml", merging(data))
    done = cli("check", "e.yaml", "--rows", 12, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads(json.dumps(ll.check(path, rows=12).to_dict()))
    assert set(found) == {"languages", "tasks", "overlaps", "findings"}


@pytest.mark.slow  # overrides are tested in test_config.py, and a look costs seconds
def test_a_key_can_be_overridden_and_a_sample_of_nothing_is_refused(cli, data, inside):
    write_experiment(inside / "e.yaml", merging(data))
    done = cli("check", "e.yaml", "--rows", 4, "--json", "--set", "languages.targets=[sw]")
    assert [one["language"] for one in json.loads(done.out)["languages"]] == ["en", "sw"]
    check_refusal(cli("check", "e.yaml", "--rows", 0), "--rows", "0", "at least 1")


def test_progress_never_falls_and_ends_full(data, tmp_path):
    told = []
    ll.check(
        write_experiment(tmp_path / "e.yaml", merging(data)), rows=12, progress=lambda *at: told.append(at)
    )
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 5


def test_validation_rows_that_only_the_look_reads_must_be_right_too(world):
    change(world / "sentiment/sw/validation.jsonl", lambda rows: [{**rows[0], "label": "?"}, *rows[1:]])
    with refused("validation.jsonl", ":1: label is '?'"):
        look(world)


def test_the_backbone_is_asked_once_for_all_points_of_a_grid(world, monkeypatch):
    asked = []
    for name in ("mean_nats", "vanilla_score"):
        real = getattr(checking, name)
        monkeypatch.setattr(checking, name, lambda *given, real=real: asked.append(real) or real(*given))
    alone = look(world)
    count = len(asked)
    grid = {"rank": {"low": {"adapter.rank": 1}, "high": {"adapter.rank": 4}}}
    found = look(world, grid=grid)
    assert len(asked) == 2 * count > 0
    assert found.languages == alone.languages
