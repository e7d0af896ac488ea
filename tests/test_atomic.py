"""Files and folders appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from builders.refusals import refused
from lingualift.provenance import atomic_folder, write_json, write_jsonl, write_text, writing


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_at_the_end_with_all_that_was_put_in(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with atomic_folder(target) as scratch:
        assert not target.exists()
        assert scratch.parent == target.parent  # one file system, so that the rename is one step
        assert list(scratch.iterdir()) == []
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file").write_text("x")
    assert everything(tmp_path) == [
        "deep",
        "deep/er",
        "deep/er/out",
        "deep/er/out/sub",
        "deep/er/out/sub/file",
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_fails(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "out") as scratch:  # noqa: PT012
        (scratch / "file").write_text("x")
        raise error
    assert everything(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "filled", "link", "dangling"])
def test_a_target_that_exists_is_refused_and_left_alone(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind in ("folder", "filled"):
        target.mkdir()
        if kind == "filled":
            (target / "mine").write_text("mine")
    else:
        (tmp_path / "there").mkdir() if kind == "link" else None
        target.symlink_to("there")
    before = everything(tmp_path)
    facts = ("exists already", "a folder that does not exist yet")
    with refused("/out", *facts, mend="another output"), atomic_folder(target):
        pytest.fail("the block ran")
    assert everything(tmp_path) == before
    assert target.is_symlink() == (kind in ("link", "dangling"))


@pytest.mark.parametrize("kind", ["file", "filled"])
def test_a_target_that_appears_meanwhile_is_refused_and_left_alone(tmp_path, kind):
    target = tmp_path / "out"
    with refused("/out", "exists already", mend="another output"), atomic_folder(target) as scratch:
        (scratch / "file").write_text("ours")
        if kind == "file":
            target.write_text("theirs")
        else:
            target.mkdir()
            (target / "theirs").write_text("theirs")
    assert everything(tmp_path) == (["out"] if kind == "file" else ["out", "out/theirs"])


def test_of_two_processes_one_wins_and_the_other_is_told(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from lingualift.errors import UserError
        from lingualift.provenance import atomic_folder
        try:
            with atomic_folder(Path(sys.argv[1])) as scratch:
                (scratch / "who").write_text(sys.argv[2])
                print("ready", flush=True)
                sys.stdin.readline()
        except UserError as error:
            print(error)
            sys.exit(2)
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "0"], **pipes) as one, subprocess.Popen([*command, "1"], **pipes) as two:
        racers = (one, two)
        assert [racer.stdout.readline() for racer in racers] == ["ready\n", "ready\n"]
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = [racer.stdout.read() for racer in racers]
    codes = [racer.returncode for racer in racers]
    assert sorted(codes) == [0, 2]
    assert "exists already" in said[codes.index(2)]
    assert (tmp_path / "out" / "who").read_text() == str(codes.index(0))
    assert everything(tmp_path) == ["out", "out/who"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "out"):
            pass
        write_text(tmp_path / "file", "x")
        assert os.umask(0o027) == 0o027  # writing put it back
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with refused("/out", "cannot be written", mend="choose an output"), atomic_folder(target):
            pytest.fail("the block ran")
        with refused("/out", "cannot be written", mend="choose an output"):
            write_text(target, "x")
    assert everything(tmp_path) == ["file"]


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with refused("xxx", "too long", mend="shorter name"), atomic_folder(tmp_path / ("x" * 300)):
        pytest.fail("the block ran")
    assert everything(tmp_path) == []


def test_a_text_file_is_replaced_whole_and_its_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file", "old")
    write_text(tmp_path / "a" / "b" / "file", "neu: ü\n")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "neu: ü\n".encode()
    assert everything(tmp_path) == ["a", "a/b", "a/b/file"]


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert everything(tmp_path) == ["file"]


def test_a_folder_in_the_way_of_a_text_file_is_refused(tmp_path):
    (tmp_path / "file").mkdir()
    with refused("/file", "directory", mend="no folder"):
        write_text(tmp_path / "file", "x")
    assert everything(tmp_path) == ["file"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "file", {"a": 1})
    for write in (write_json, write_jsonl):
        with pytest.raises(TypeError):
            write(tmp_path / "file", [object()])
    assert (tmp_path / "file").read_text() == '{\n  "a": 1\n}\n'
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "may write"),
        (errno.EPERM, "may write"),
        (errno.EROFS, "may write"),
        (errno.ENOTDIR, "parents are folders"),
        (errno.EISDIR, "no folder"),
        (errno.EEXIST, "not exist yet"),
        (errno.ENOTEMPTY, "not exist yet"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_a_refusal_of_the_system_says_what_to_do(tmp_path, number, mend):
    with refused("/out", os.strerror(number), mend=mend), writing(tmp_path / "out"):
        raise OSError(number, "whatever")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "disk"), OSError("no number"), ValueError("x")])
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full, a Linux device")
def test_a_full_disk_is_the_users_error(tmp_path):
    full = Path("/dev/full")
    with (
        refused(tmp_path.name, "No space", mend="free some space"),
        writing(tmp_path),
        full.open("w") as full,
    ):
        full.write("x" * 100_000)


def test_a_text_file_needs_no_folder_but_its_own(tmp_path):
    """A rename is one step only within one file system."""
    code = "import sys; from pathlib import Path; from lingualift.provenance import write_text; "
    code += "write_text(Path(sys.argv[1]), 'x')"
    nowhere = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path / "none"))}
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import tempfile; tempfile.tempdir = '/none'; " + code,
            str(tmp_path / "file"),
        ],
        check=True,
        env=nowhere,
    )
    assert everything(tmp_path) == ["file"]


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    code = "import sys; from pathlib import Path; from lingualift.provenance import read_json, write_json; "
    code += "path = Path(sys.argv[1]); write_json(path, 'ü漢'); assert read_json(path) == 'ü漢'"
    strict = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c", code]
    subprocess.run([*strict, str(tmp_path / "file")], check=True, env={**os.environ, "PYTHONUTF8": "0"})
    assert (tmp_path / "file").read_bytes() == '"ü漢"\n'.encode()


def test_an_open_umask_gives_everyone_read_and_write_but_no_execution(tmp_path):
    before = os.umask(0)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666


def test_a_text_file_with_too_long_a_name_is_refused_by_that_name(tmp_path):
    with refused("/xxx", "too long", mend="shorter name"):
        write_text(tmp_path / ("x" * 300), "x")
    assert everything(tmp_path) == []


def test_files_are_as_open_as_the_umask_says(tmp_path):
    before = os.umask(0o002)
    try:
        with atomic_folder(tmp_path / "out") as scratch:
            (scratch / "deep").mkdir()
            (scratch / "deep" / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))]
    assert modes == [0o775, 0o775, 0o664]
