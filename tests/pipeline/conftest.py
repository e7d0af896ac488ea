"""A finished run, made once a module, and a copy of it for each test."""

import shutil

import pytest

from builders.runs import tuned
from builders.worlds import small_data, write_experiment
from lingualift.pipeline import run


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run with data of its own, to be copied by each test."""
    folder = tmp_path_factory.mktemp("first")
    small_data(folder / "data")
    run(write_experiment(folder / "e.yaml", tuned("data")), output=folder / "run")
    return folder


@pytest.fixture
def mine(first, tmp_path):
    return shutil.copytree(first, tmp_path / "mine", symlinks=True)
