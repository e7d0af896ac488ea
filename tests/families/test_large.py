"""Vocabularies as large as real ones: the head reads what is contiguous, and logits are never all there at once."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from builders.shipped import examples_of, learn
from lingualift.backbone import products
from lingualift.backbone.loading import load_backbone
from lingualift.config import Adapter, Scoring, Training
from lingualift.evaluation.perplexity import mean_nats
from lingualift.evaluation.runner import evaluate
from lingualift.tasks import TASKS
from lingualift.tasks.language_modelling import REFERENCE_TASKS
from lingualift.training.measuring import measure_step
from lingualift.training.trainer import initialise

TEXTS = ["the review was good and the red book was bad " * 8, "kitabu chekundu kiko jikoni " * 12] * 6
ONE = Training(steps=1, batch_size=4, learning_rate=1e-4, warmup=0.0)
QUICK = Scoring(max_length=256, max_new_tokens=3)


@pytest.fixture(params=["gemma3-words", "mt5"])
def ref(request, backbone):
    return backbone(request.param)


@contextmanager
def watched(ref):
    """Whether each input of the head, while it lasts, was contiguous; and how many tokens it had."""
    seen = []
    head = load_backbone(ref)[0].get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda _, given: seen.append((given[0].is_contiguous(), given[0].shape[1]))
    )
    try:
        yield seen
    finally:
        hook.remove()


def contiguous(seen):
    return bool(seen) and all(good for good, _ in seen)


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is made, views and the model's own weights apart."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made._is_view():
            self.numbers = max(self.numbers, made.numel())
        return made


class Batched(TorchDispatchMode):
    """How often a matrix is multiplied as a batch of matrices: torch may copy it for each, and always in bfloat16."""

    def __init__(self, matrix):
        super().__init__()
        self.count, self.own = 0, matrix.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.bmm.default:
            self.count += any(given.untyped_storage().data_ptr() == self.own for given in args)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def drawn(ref, tmp_path):
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(rank=2), 0, tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize("task", ["nusax", "xquad"])
def test_when_answers_are_ranked_or_generated(ref, drawn, tmp_path, task):
    task, examples = examples_of(tmp_path, task)
    with watched(ref) as seen:
        evaluate(ref, drawn, task, examples, QUICK)
    assert contiguous(seen)
    if ref.family == "decoder":
        assert min(tokens for _, tokens in seen) == 1  # cut


def test_when_an_adapter_learns(ref, drawn, tmp_path):
    task, examples = examples_of(tmp_path, "nusax")
    with watched(ref) as seen:
        learn(ref, task, examples, drawn, tmp_path / "task", ONE)
    assert contiguous(seen)
    if ref.family == "decoder":
        assert max(tokens for _, tokens in seen) < 20  # of the answers alone
    with watched(ref) as seen:
        learn(ref, TASKS[REFERENCE_TASKS[ref.objective]], TEXTS, drawn, tmp_path / "text", ONE)
    assert contiguous(seen)


@pytest.mark.parametrize("task", ["nusax", "xquad"])
def test_one_row_alone_copies_no_matrix_of_the_head(ref, drawn, tmp_path, task):
    """Cut states of one row count as contiguous, and torch copied the matrix of a bfloat16 head all the same."""
    task, examples = examples_of(tmp_path, task)
    with Batched(load_backbone(ref)[0].get_output_embeddings().weight) as batched:
        evaluate(ref, drawn, task, examples[:1], QUICK)
        learn(ref, task, examples[:1], drawn, tmp_path / "one", ONE)
    assert batched.count == 0


@pytest.mark.parametrize("ref", [pytest.param("gemma3-words", marks=pytest.mark.slow), "mt5"], indirect=True)
def test_when_steps_and_texts_are_measured(ref, drawn, tmp_path):
    task, examples = examples_of(tmp_path, "nusax")
    with watched(ref) as seen:
        measure_step(ref, task, examples, ONE, start=drawn, language="id")
    assert contiguous(seen)
    model, tokenizer = load_backbone(ref)
    with watched(ref) as seen:
        assert mean_nats(ref, model, tokenizer, TEXTS, 32, "en") > 0
    assert contiguous(seen)


def test_text_is_learnt_without_all_of_its_logits(backbone, tmp_path, monkeypatch):
    ref = backbone("gemma3-words")
    words = load_backbone(ref)[0].config.vocab_size
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(rank=2), 0, tmp_path / "start")
    settings = Training(steps=1, batch_size=4, learning_rate=1e-2, warmup=0.0)
    learnt = {}
    for name, most in (("whole", 2**40), ("parts", 24 * words)):
        monkeypatch.setattr(products, "LOGITS", most)
        with Largest() as largest:
            learn(
                ref, TASKS["causal-lm"], TEXTS, tmp_path / "start", tmp_path / name, settings,
                segment_tokens=40,
            )  # fmt: skip
        learnt[name] = largest.numbers
    assert (
        learnt["whole"] > 100 * words
    )  # four segments of 39 that are predicted, but for first words of documents
    assert learnt["parts"] <= max(24, 64) * words  # the embeddings themselves have 64 numbers a word
    texts = [(tmp_path / name / "training_log.jsonl").read_text() for name in learnt]
    losses = [float(text.split('"train_loss": ')[1].split(",")[0].rstrip("}\n")) for text in texts]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_answers_are_ranked_without_softmax_of_all_logits(backbone, tmp_path, monkeypatch):
    ref = backbone("gemma3-words")
    words = load_backbone(ref)[0].config.vocab_size
    task, examples = examples_of(tmp_path, "nusax")
    with Largest() as largest:
        evaluate(ref, None, task, examples, Scoring(max_length=256))
    # logits of a batch's prompts, and of its answers' further tokens, in the model's own format
    pieces = max(len(load_backbone(ref)[1](word)["input_ids"]) for word in examples[0].choices.values())
    assert largest.numbers <= len(examples) * len(examples[0].choices) * pieces * words


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("rows", ["nusax", "texts"])
def test_the_loss_in_parts_trains_the_same_adapter(backbone, tmp_path, monkeypatch, name, rows):
    """Gemma 2 caps its logits behind the head: there the loss is the model's own, found out on the first batch."""
    from safetensors.torch import load_file

    ref = backbone(name)
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(rank=2), 0, tmp_path / "start")
    settings = Training(steps=3, batch_size=4, learning_rate=1e-3, accumulation=2)
    found = {}
    for most in (2**40, 3 * 900):
        monkeypatch.setattr(products, "LOGITS", most)
        task, examples = (TASKS["causal-lm"], TEXTS) if rows == "texts" else examples_of(tmp_path, "nusax")
        learn(ref, task, examples, tmp_path / "start", tmp_path / str(most), settings)
        found[most] = load_file(tmp_path / str(most) / "adapter_model.safetensors")
    one, other = found.values()
    for key, value in one.items():
        assert torch.allclose(value, other[key], atol=2e-5, rtol=1e-3), key
