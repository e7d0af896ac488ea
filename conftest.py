"""Every test runs offline, with a hub cache of its own, on one thread or LINGUALIFT_TEST_THREADS of them.

On the processor, where there is a GPU too: only `-m gpu` sees it.

Some run the command line, in processes of its own.
"""

import os
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lingualift-tests-")  # before a library reads it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("LINGUALIFT_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = os.environ["LINGUALIFT_TEST_THREADS"]

import gc
import shutil

import pytest
import torch
from hypothesis import HealthCheck, settings

from builders.commands import Commands

torch.set_num_threads(int(os.environ["LINGUALIFT_TEST_THREADS"]))
settings.register_profile(
    "lingualift",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lingualift")


def pytest_configure(config):
    """Hide a GPU: what tests compute beside the product is on the processor, and processes are forked."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _remove_the_cache():
    yield
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _settled():
    """Spare garbage collection what is imported by now: each training collects, and there is a lot."""
    gc.collect()
    gc.freeze()


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
