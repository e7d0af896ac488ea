"""What the tests of training learn from."""

import pytest

from lingualift.config import Data
from lingualift.data.datasets import Examples, Texts


@pytest.fixture(scope="module")
def examples(data):
    return Examples("mini-sentiment", Data(files="sentiment/{language}/{split}.jsonl"), data).rows(
        "en", "train"
    )


@pytest.fixture(scope="module")
def texts(data):
    return Texts("causal-lm", Data(files="reference/{language}/train.jsonl"), data).rows("sw", "train")
