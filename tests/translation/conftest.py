"""A small NLLB with random weights, a stand-in that translates word for word, and the command line."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

for folder in ("families", "spine"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

import tiny  # noqa: E402
from commands import Commands  # noqa: E402


@pytest.fixture(scope="session")
def nllb(tmp_path_factory):
    """Weights so wide that texts differ in their translations, and that some of them end before the limit."""
    folder = tiny.build("nllb", tmp_path_factory.mktemp("nllb") / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.init_std = 1.0
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.get_input_embeddings().weight.data[config.eos_token_id] *= 2
    model.save_pretrained(folder)
    return folder


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
