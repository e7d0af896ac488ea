"""What a run has made in a folder, and what it leaves alone there."""

from builders.refusals import refused
from lingualift.runs.claims import RECORD_FILE, alone, check, discard, made, place


def test_places_are_checked_one_by_one(tmp_path):
    with alone(tmp_path):
        place(tmp_path, {"a/one.txt": "1", "two.txt": "2"})
    (tmp_path / "source").write_text("linked")
    place(tmp_path, {"b/link": tmp_path / "source"})
    assert (tmp_path / "b" / "link").samefile(tmp_path / "source")
    assert set(made(tmp_path)) == {"a/one.txt", "two.txt", "b/link"}
    check(tmp_path, ["three.txt"])
    (tmp_path / "two.txt").write_text("mine now")
    with refused("two.txt", "changed"):
        place(tmp_path, {"a/one.txt": "new", "two.txt": "new"})
    assert (tmp_path / "a" / "one.txt").read_text() == "1"
    discard(tmp_path, ["a/one.txt", "two.txt", "b/link"])
    assert (tmp_path / "two.txt").read_text() == "mine now"
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert made(tmp_path) == {}
    (tmp_path / RECORD_FILE).write_text('{"files": {"../out.txt": [], "/etc/passwd": []}}')
    assert made(tmp_path) == {}
    (tmp_path / RECORD_FILE).write_text('{"files": ["two.txt"]}')
    with refused(RECORD_FILE, "no record"):
        made(tmp_path)
