"""benchmarks/fuzz.py: it sees every kind of fault, in a command line that has them."""

import json
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMANDS = """
import json, os, socket, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import lingualift.cli
from fuzzing import trial
from lingualift.errors import UserError

def traceback(): raise ValueError("no UserError")
def printed(): print("Traceback (most recent call last):")
def hang():
    while True:
        pass
def memory(): bytearray(200_000_000)
def no_memory(): bytearray(10**12)
def accepted(): pass
def refused_right(): message()
def half_written():
    Path("out").touch()
    message()
def scratch(): Path(".out.x.partial").mkdir()
def lost(): Path("mine").write_text("theirs")
def gone(): Path("mine").unlink()
def executed(): Path("../canary").touch()
def sent():
    try:
        socket.create_connection(("example.org", 80))
    except OSError:
        pass
def escape(): print("\\x1b[2J")
def two_messages():
    message(end=False)
    message()
def no_message(): sys.exit(2)
def other_code():
    sys.stderr.write("lingualift: a: b\\n")
    sys.exit(1)
def nowhere():
    sys.stderr.write("lingualift: something is wrong\\n")
    sys.exit(2)
def full(): print("x")
def bound():
    try:
        Path("secret").read_text()
    except PermissionError:
        message()
def message(end=True):
    sys.stderr.write("lingualift: mine: is empty\\n")
    if end:
        sys.exit(2)
def answer():
    Path("out").touch()
    print("done")

cases = [value for value in list(globals().values()) if getattr(value, "__module__", "") == "__main__"]
trial.MEMORY = 10**8
trial.guard()
found = {}
for case in cases:
    trial.LIMIT = 1 if case is hang else 60  # so that a slow machine makes no hang of another case
    lingualift.cli.main = case
    folder = Path(case.__name__)
    folder.mkdir()
    os.chdir(folder)
    Path("mine").write_text("mine")
    Path("secret").touch(mode=0)
    one = trial.Trial(
        "m", ("command",), right={accepted: trial.REFUSED, refused_right: trial.OK}.get(case, trial.EITHER),
        stdout="/dev/full" if case is full else "utf-8",
    )
    before = trial.listing(Path())
    called = trial.call(one.arguments, one.stdout, case is bound)
    verdict = trial.judge(one, called, before, trial.listing(Path()))
    found[case.__name__] = verdict.outcome
    os.chdir("..")
print(json.dumps([trial.KINDS, found]))
"""
RIGHT = {
    "printed": "traceback",
    "no_memory": "memory",
    "refused_right": "refused right",
    "half_written": "half-written",
    "scratch": "half-written",
    "gone": "lost",
    "escape": "message",
    "two_messages": "message",
    "no_message": "message",
    "other_code": "message",
    "nowhere": "message",
    "full": "traceback",
    "bound": "refused",
    "message": "refused",
    "answer": "ok",
}
"""Cases whose outcome is not called as they are."""


def test_every_kind_of_fault_is_seen(cli, inside):
    Path("commands.py").write_text(COMMANDS, encoding="utf-8")
    done = cli.script(Path("commands.py").absolute(), str(BENCHMARKS))
    assert done.code == 0, done.err
    kinds, found = json.loads(done.out.splitlines()[-1])
    assert found == {name: RIGHT.get(name, name) for name in found}
    assert {*found.values()} == {*kinds, "ok", "refused"} - {"changed"}  # which takes two commands


def test_reference_readers_refuse_what_the_surfaces_say(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fuzzing.ground import EITHER, REFUSED, deserialized, known

    header = b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 0]}}'
    for size, right in ((b"0", EITHER), (b"0, 1e30", REFUSED), (b"0, 3", EITHER), (b'"0"', REFUSED)):
        text = header % size
        assert known(lambda: deserialized(len(text).to_bytes(8, "little") + text)) == right  # noqa: B023


def test_no_input_is_answered_otherwise(cli, inside):
    done = cli.script(BENCHMARKS / "fuzz.py", "--inputs", "300", "--seed", "1", "--output", "table.md")
    assert done.code == 0, done.out + done.err
    head, _, *rows = [line.strip("| ").split() for line in Path("table.md").read_text().splitlines()[:-2]]
    assert head == ["surface", "|", "inputs", "|", "ok", "|", "refused", "|", "seconds"]
    counts = {name: [int(count.replace("–", "0")) for count in row[1::2]] for name, *row in rows}
    assert len(counts) == 16
    assert all(inputs == ok + refused for inputs, ok, refused, _ in counts.values())
    assert 290 < counts["all"][0] < 310
    assert counts["all"][1] > 50
    assert counts["all"][2] > 50
