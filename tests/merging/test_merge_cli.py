"""The commands `merge` and `inspect`: options, exit codes, what stands on screen."""

import json
import subprocess
import sys

import pytest

from builders.adapter_folders import three, write_lora
from lingualift.__main__ import main


def lingualift(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lingualift", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def roles(paths):
    names = ("--task", "--target-reference", "--source-reference")
    return [word for pair in zip(names, paths, strict=True) for word in pair]


def test_merge_and_inspect(tmp_path, monkeypatch, capsys):
    paths, out = three(tmp_path, write_lora), tmp_path / "out"
    options = ["--weight", 0.7, "--space", "delta", "--rank", 4, "--modules", "q_proj", "-o", out]
    code, text, _ = lingualift(monkeypatch, capsys, "merge", "--method", "adamergex", *roles(paths), *options)
    assert code == 0
    assert "merged 1 modules" in text
    assert "not merged: 1 modules (left out by modules)" in text
    assert "spectral energy kept" in text
    code, text, _ = lingualift(monkeypatch, capsys, "inspect", paths[0], out)
    assert code == 0
    assert "can be merged" in text
    assert "made by adamergex" in text
    code, text, _ = lingualift(monkeypatch, capsys, "inspect", "--json", *paths)
    assert json.loads(text)["shared_initialisation"] is True


def test_a_list_of_adapters(tmp_path, monkeypatch, capsys):
    one, two, _ = three(tmp_path, write_lora)
    listed = ["--adapter", f"{one}=1", "--adapter", f"{two}=-0.5", "--module-weight", "q_proj=0.5"]
    out = tmp_path / "out"
    code, text, _ = lingualift(monkeypatch, capsys, "merge", "--method", "arithmetic", *listed, "-o", out)
    assert code == 0
    assert "adapter 2: weight -0.5" in text
    assert json.loads((out / "provenance.json").read_text())["module_weights"] == {"q_proj": 0.5}


def test_what_the_user_can_mend_ends_with_2(tmp_path, monkeypatch, capsys):
    paths = three(tmp_path, write_lora)
    (paths[2] / "adapter_model.safetensors").write_bytes(b"123")
    code, text, error = lingualift(monkeypatch, capsys, "merge", *roles(paths), "-o", tmp_path / "out")
    assert (code, text) == (2, "")
    assert error.startswith(f"lingualift: {paths[2]}")
    assert error.count("mend:") == 1
    code, _, error = lingualift(monkeypatch, capsys, "merge", "--method", "ties", "--adapter", "x", "-o", "y")
    assert code == 2
    assert "NAME=NUMBER" in error


def test_a_warning_is_seen(tmp_path):
    paths = [write_lora(tmp_path / f"in{i}", seed=i, provenance={"initialisation": str(i)}) for i in range(3)]
    command = [
        sys.executable,
        "-c",
        "from lingualift.__main__ import main; main()",
        "merge",
        *map(str, roles(paths)),
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("not trained from one initialisation") == 1
