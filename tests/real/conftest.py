"""Real pretrained models, from the folder that LINGUALIFT_REAL names; rows of the NusaX that ships, or of your copy."""

import os
from pathlib import Path

import pytest
import torch
from rows import write_rows


def pytest_collection_modifyitems(items):
    """Mark what needs a real model."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("gpu") is None:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.slow)


def _model(name):
    folder = os.environ.get("LINGUALIFT_REAL")
    if not folder:
        pytest.skip("LINGUALIFT_REAL names no folder of real models")
    path = Path(folder) / name
    if not (path / "config.json").is_file():
        pytest.skip(f"LINGUALIFT_REAL holds no {name}")
    return path


@pytest.fixture(scope="session")
def gemma():
    """Gemma 3 270M, a decoder of 262,144 words."""
    return _model("gemma-3-270m")


@pytest.fixture(scope="session")
def e5():
    """multilingual-e5-small, an encoder of 250,037 words without a head for them and without a pooling layer."""
    return _model("e5-small")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """NusaX rows in `{language}/{split}.jsonl`: eng, ind and jav."""
    return write_rows(tmp_path_factory.mktemp("nusax"))


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU, or it is hidden: only `-m gpu` sees one")
    return torch.device("cuda")
