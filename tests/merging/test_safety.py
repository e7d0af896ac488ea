"""Never wrong in silence: damaged files, full disks, races and kills leave one clear error and no folder."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from builders.adapter_folders import raw, updates, write_folder, write_lora
from builders.refusals import refused
from lingualift.errors import UserError
from lingualift.merging import merge

WEIGHTS = "adapter_model.safetensors"
RUN = """
import sys
from lingualift.errors import UserError
from lingualift.merging import merge
task, target, source, output = sys.argv[1:5]
try:
    merge(method="adamergex", task=task, target_reference=target, source_reference=source, weight=0.7, output=output)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
KILL = """
import os, signal
from lingualift.adapters import tensorfile
read, count = tensorfile.TensorFile.read, [0]
def dying(self, name):
    count[0] += 1
    if count[0] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, name)
tensorfile.TensorFile.read = dying
"""
LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))\n"


def three(root, **more):
    modules = {f"layers.{i}.{end}": (40, 30) for i in range(3) for end in ("q_proj", "v_proj")}
    return [write_lora(root / f"in{seed}", modules, seed=seed, **more) for seed in range(3)]


def run(paths, output, **options):
    task, target, source = paths
    options = {"weight": 0.7, **options}
    return merge(
        method="adamergex",
        task=task,
        target_reference=target,
        source_reference=source,
        output=output,
        **options,
    )


def process(paths, output, before=""):
    return subprocess.Popen(
        [sys.executable, "-c", before + RUN, *map(str, [*paths, output])], stderr=subprocess.PIPE, text=True
    )


def hashed(path):
    """Provenance as the trainer writes it."""
    digest = {key: hashlib.sha256((path / name).read_bytes()).hexdigest() for key, name in FILES.items()}
    (path / "provenance.json").write_text(json.dumps({"kind": "trained", "initialisation": "same", **digest}))
    return path


FILES = {"weights_sha256": WEIGHTS, "config_sha256": "adapter_config.json"}


def damage(data: bytes, draw: random.Random) -> bytes:
    """One of the ways in which files break."""
    place, kind = draw.randrange(len(data)), draw.randrange(7)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + draw.randbytes(draw.randrange(1, 20))
    if kind == 2:
        return data[:place] + data[place + 1 :]
    if kind == 3:
        length = draw.randrange(1, 40)
        return data[:place] + bytes(length) + data[place + length :]
    if kind == 4:  # the header, where most meaning is
        place %= min(len(data), 400)
    if kind == 5:  # a digit becomes another
        digits = [i for i, byte in enumerate(data[:2000]) if chr(byte).isdigit()] or [place]
        place = draw.choice(digits)
        return data[:place] + str(draw.randrange(10)).encode() + data[place + 1 :]
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


@pytest.mark.parametrize("seed", range(10))
def test_500_corruptions(tmp_path, seed):
    """No traceback, no wrong adapter: an error, or the merge of what the damaged files now validly say."""
    draw = random.Random(seed)
    modules = {"layers.0.q_proj": (6, 5), "layers.1.q_proj": (4, 7)}
    paths = [write_lora(tmp_path / f"in{number}", modules, seed=number) for number in range(3)]
    with_hash = seed % 2
    for number in range(50):
        victim = tmp_path / "victim"
        position = draw.randrange(3)
        shutil.copytree(paths[position], victim)
        if with_hash:
            hashed(victim)
        file = victim / draw.choice([WEIGHTS, WEIGHTS, "adapter_config.json"])
        before = file.read_bytes()
        file.write_bytes(damage(before, draw))
        inputs = [victim if place == position else path for place, path in enumerate(paths)]
        output = tmp_path / f"out{number}"
        space = draw.choice(["factors", "delta", "core"])
        try:
            run(inputs, output, space=space)
            refused = None
        except UserError as error:
            refused = error
        if refused:
            assert refused.mend
            assert not output.exists()
        else:
            assert not with_hash or file.read_bytes() == before
            check(inputs, output, space)
        shutil.rmtree(victim)
    assert not list(tmp_path.glob(".*")), "no partial folder"


def check(inputs, output, space):
    tensors = raw(output)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    try:
        task, target, source = map(updates, inputs)
    except (SafetensorError, ValueError) as error:
        raise AssertionError("we merged what the reference reader refuses") from error
    if space == "factors" or not task.keys() == target.keys() == source.keys():
        return
    found = updates(output)
    for name, value in task.items():
        terms = [value, 0.7 * target[name], -0.7 * source[name]]
        assert np.linalg.norm(found[name] - sum(terms)) <= 1e-6 * sum(map(np.linalg.norm, terms))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_none(tmp_path, value, dtype):
    paths = three(tmp_path, dtype=dtype)
    tensors = raw(paths[1])
    name = "base_model.model.layers.1.v_proj.lora_B.weight"
    tensors[name][3, 2] = value
    config = json.loads((paths[1] / "adapter_config.json").read_text())
    broken = write_folder(tmp_path / "broken", tensors, config)
    for space in ("factors", "delta", "core"):
        with refused(f"broken/{WEIGHTS}", f"'{name}'", "NaN or infinity", mend="restore"):
            run([paths[0], broken, paths[2]], tmp_path / "out", space=space)
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".*"))


def test_payload_damage_is_seen_where_provenance_has_a_hash(tmp_path):
    paths = [hashed(path) for path in three(tmp_path)]
    data = bytearray((paths[2] / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (paths[2] / WEIGHTS).write_bytes(data)
    with refused("in2/adapter_model.safetensors", "was changed"):
        run(paths, tmp_path / "out")
    with refused("in2/adapter_model.safetensors", "was changed"):
        run(paths, tmp_path / "out", weight=0)
    assert not (tmp_path / "out").exists()


def test_what_was_written_is_hashed_and_verified_when_merged_again(tmp_path):
    paths = three(tmp_path)
    first = run(paths, tmp_path / "first").output
    run([first, *paths[1:]], tmp_path / "second")
    data = bytearray((first / WEIGHTS).read_bytes())
    data[-1] ^= 64
    (first / WEIGHTS).write_bytes(data)
    with refused("first/adapter_model.safetensors", "was changed"):
        run([first, *paths[1:]], tmp_path / "third")


@pytest.mark.parametrize("old", ["a folder", "an empty folder", "a file", "a dangling link"])
def test_an_existing_output_is_left_alone(tmp_path, old):
    paths, output = three(tmp_path), tmp_path / "out"
    if old == "a file":
        output.write_text("mine")
    elif old == "a dangling link":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.mkdir()
        if old == "a folder":
            (output / "mine").write_text("mine")
    with refused("/out", "exists already", mend="another output"):
        run(paths, output)
    assert old != "a file" or output.read_text() == "mine"
    assert old != "a dangling link" or (output.is_symlink() and not output.exists())
    assert old != "a folder" or [entry.name for entry in output.iterdir()] == ["mine"]
    assert old != "an empty folder" or not list(output.iterdir())


def test_several_processes_write_one_output(tmp_path):
    paths, output = three(tmp_path), tmp_path / "out"
    running = [process(paths, output) for _ in range(4)]
    messages = [child.communicate()[1] for child in running]
    codes = sorted(child.returncode for child in running)
    assert codes == [0, 2, 2, 2], messages
    assert sum("exists already" in message for message in messages) == 3
    expected = run(paths, tmp_path / "alone").output
    assert (output / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_kill_in_mid_write_leaves_no_output(tmp_path):
    paths, output = three(tmp_path), tmp_path / "out"
    child = process(paths, output, KILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not output.exists()
    assert run(paths, output).merged


def test_a_limit_on_file_sizes(tmp_path):
    paths = three(tmp_path, r=30)
    child = process(paths, tmp_path / "out", LIMIT)
    message = child.communicate()[1]
    assert child.returncode == 2
    assert "cannot be written" in message
    assert "mend:" in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs; test_a_limit_on_file_sizes covers the same path")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(tmp_path, small_disk):
    paths = three(tmp_path, r=40)
    with refused(str(small_disk), "cannot be written", "No space left on device", mend="free some space"):
        run(paths, small_disk / "out")
    assert not list(small_disk.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with refused("closed/out", "Permission denied", mend="may write to"):
        run(three(tmp_path), closed / "out")


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("file/out", "cannot be written", mend="choose an output"):
        run(three(tmp_path), tmp_path / "file" / "out")


def test_neither_torch_nor_peft_is_imported(tmp_path):
    check = "import sys\nassert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'heavy'\n"
    look = "from lingualift.adapters import inspect\ninspect(sys.argv[1:4])\n"
    child = subprocess.run(
        [sys.executable, "-c", RUN + look + check, *map(str, [*three(tmp_path), tmp_path / "out"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr


def test_a_reader_that_vanishes(tmp_path, monkeypatch):
    """A file cut while it is read: the header was whole, a tensor is not."""
    from lingualift.adapters import open_adapter

    paths = three(tmp_path)
    adapter = open_adapter(paths[0])
    data = (paths[0] / WEIGHTS).read_bytes()
    Path(paths[0] / WEIGHTS).write_bytes(data[:-10])
    last = list(adapter.tensors)[-1]
    with refused("in0/adapter_model.safetensors", "inside tensor"):
        [adapter.read(name) for name in (last, *adapter.tensors)]
