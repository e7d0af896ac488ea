"""What many tests share: two small backbones and the mini-world's files, made once a session."""

import pytest

from builders.worlds import build_bpe_backbone, small_data
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    """A random Llama whose byte-level tokenizer gives answers of several tokens."""
    return build_bpe_backbone(tmp_path_factory.mktemp("bpe") / "backbone")


@pytest.fixture(scope="session")
def bpe(bpe_folder):
    return find_backbone(Backbone(name=str(bpe_folder)))


@pytest.fixture(scope="session")
def mini():
    return find_backbone(Backbone(name="miniworld"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Task data of the mini-world, a few rows of it; read only."""
    return small_data(tmp_path_factory.mktemp("world") / "data")
