"""A small NLLB with random weights, a stand-in that translates word for word, and the command line."""

import sys
from pathlib import Path

import pytest

for folder in ("families", "spine"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

import tiny  # noqa: E402
from commands import Commands  # noqa: E402


@pytest.fixture(scope="session")
def nllb(tmp_path_factory):
    return tiny.build("nllb", tmp_path_factory.mktemp("nllb") / "model")


@pytest.fixture(scope="session")
def cli():
    """Runs the command line in processes of its own."""
    with Commands() as commands:
        yield commands


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
