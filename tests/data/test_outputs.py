"""What the output of hours of work cannot be is found before them, and answers are on disk as they are found."""

import os
import stat
import sys

import pytest

import lingualift as ll
from builders.refusals import check_refusal, refused
from builders.worlds import read_jsonl, write_jsonl
from lingualift.data.output import check_output, growing
from lingualift.miniworld.data import sentiment_rows

LONG = "x" * 240 + ".jsonl"  # fits, but not with the name that it is written under first
COMMON = ["--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw"]
MUTE = """
import os, signal
from lingualift.tasks import TASKS
from lingualift.tasks.miniworld import MiniQA

class Mute(MiniQA):
    asked = 0
    def parse(self, text, example):
        Mute.asked += 1
        if Mute.asked == 6:  # the first one is a trial
            os.kill(os.getpid(), signal.SIGINT)
        return text

TASKS.register("mute")(Mute())
"""


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def rows(inside):
    write_jsonl(inside / "test.jsonl", sentiment_rows("sw", "test", 16))
    return inside


def arguments(command, output):
    given = {"predict": ["--input=test.jsonl"], "evaluate": ["--data={split}.jsonl"]}[command]
    return [command, *COMMON, *given, f"--output={output}"]


FAILS = "import lingualift.backbone.loading as b\ndef load(*_): raise SystemExit('a model was loaded')\n"
FAILS += "import lingualift.evaluation.runner as r\nr.load_backbone = load\n"


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(cli, rows, command):
    (rows / "file").write_text("x")
    (rows / "loop").symlink_to("loop")
    (rows / "half.jsonl.partial").write_text("mine")
    (rows / "half.predictions.jsonl.partial").write_text("mine")
    before = files(rows)
    for output, where, found in (
        ("file/out.jsonl", "file/out.jsonl", "cannot be written"),
        (LONG, "xxx", "too long"),
        ("x" * 300, "xxx", "too long"),
        ("new/" + "x" * 300, "new/xxx", "too long"),
        (".", ".", "exists already"),
        ("loop", "loop", "exists already"),
        ("half.jsonl", ".partial", "the answers of a call"),
    ):
        check_refusal(cli(*arguments(command, output), before=FAILS), where, found)
    assert files(rows) == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_what_ends_well_leaves_its_output_alone(cli, rows, command):
    done = cli(*arguments(command, "new/deep/out.jsonl"))
    assert done.code == 0, done.err
    names = ["out.jsonl"] if command == "predict" else ["out.jsonl", "out.predictions.jsonl"]
    assert files(rows / "new" / "deep") == names
    assert len(read_jsonl(rows / "new" / "deep" / names[-1])) == 16


def test_a_row_that_cannot_be_written_is_refused_before_the_model_is_loaded(cli, rows):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for note, found in (
        ("cut emoji \ud83d", "\\ud83d"),
        (deep, "100 levels"),
        (10**5000, "infinity"),
        ({"\udcff": 1}, "\\udcff"),
    ):
        with refused("rows:2", "column 'note'", found):
            ll.predict(
                backbone="./none",  # not looked for
                task="mini-sentiment",
                language="sw",
                rows=[{"id": "1", "text": "well ."}, {"id": "2", "text": "bad .", "note": note}],
            )
    (rows / "extra.jsonl").write_text('{"text": "a", "note": "cut emoji \\ud83d"}\n')
    done = cli("predict", *COMMON, "--input=extra.jsonl", "--output=out.jsonl", before=FAILS)
    check_refusal(done, "extra.jsonl:1", "\\ud83d")
    assert files(rows) == ["extra.jsonl", "test.jsonl"]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_answers_of_a_call_that_is_stopped_stay(cli, rows, command):
    (rows / "mute.py").write_text(MUTE)
    qa = [{"id": str(i), "context": f"Bob has {i} books .", "question": "?", "answer": "4"} for i in range(9)]
    write_jsonl(rows / "test.jsonl", qa)
    given = [one if one != "mini-sentiment" else "mute.py" for one in arguments(command, "new/out.jsonl")]
    done = cli(*given)
    assert done.code == 130
    name = "out.jsonl.partial" if command == "predict" else "out.predictions.jsonl.partial"
    assert f"the 4 answers that were found are in new/{name}" in done.err
    assert files(rows / "new") == [name]
    found = read_jsonl(rows / "new" / name)
    assert len(found) == 4
    assert {one["id"] for one in found} <= {str(i) for i in range(9)}
    check_refusal(cli(*given), f"new/{name}", "the answers of a call", mend="move it away")
    assert read_jsonl(rows / "new" / name) == found


def fail_after(line, target):
    with growing(target) as keep:
        if line:
            keep(line)
        raise OSError("later")


def test_whatever_goes_wrong_later_the_answers_stay(tmp_path, capsys):
    with pytest.raises(OSError, match="later"):
        fail_after('{"a": 1}', tmp_path / "a" / "out")
    assert (tmp_path / "a" / "out.partial").read_text() == '{"a": 1}\n'
    assert "the 1 answers" in capsys.readouterr().err


def test_a_call_without_answers_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="later"):
        fail_after("", tmp_path / "a" / "b" / "out")
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with refused("/shut", "Permission denied"):
        check_output(tmp_path / "shut" / "new" / "out", "file")
