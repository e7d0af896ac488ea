"""One trainer: from one recorded start, repeatable, and the backbone stays as it was."""

import itertools

import pytest
import torch

from builders.refusals import refused
from builders.trainings import SETTINGS, begin, equal, facts, tensors, trained
from builders.worlds import learn, read_jsonl
from lingualift.backbone.loading import load_backbone
from lingualift.config import Training
from lingualift.provenance import sha256_file
from lingualift.tasks import Example


def test_one_seed_draws_one_initialisation_and_another_another(mini, tmp_path):
    one, again, other = (begin(mini, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert equal(tensors(one), tensors(again))
    assert not equal(tensors(one), tensors(other))
    assert all(not tensor.any() for name, tensor in tensors(one).items() if "lora_B" in name)


def test_adapters_of_one_start_record_it_and_differ_from_it(mini, tmp_path, examples, texts):
    start = begin(mini, tmp_path / "start")
    trained(mini, examples, start, tmp_path / "task")
    trained(mini, texts, start, tmp_path / "reference")
    recorded = sha256_file(start / "adapter_model.safetensors")
    assert facts(start)["weights_sha256"] == recorded
    for name in ("task", "reference"):
        assert facts(tmp_path / name)["initialisation"] == recorded
        assert not equal(tensors(tmp_path / name), tensors(start))
    further = trained(mini, examples, tmp_path / "task", tmp_path / "further", learning_rate=1e-2)
    assert facts(tmp_path / "further")["initialisation"] == recorded
    assert not equal(further, tensors(tmp_path / "task"))


def test_the_record_says_all_that_determined_the_adapter(mini, tmp_path, examples):
    start = begin(mini, tmp_path / "start")
    trained(mini, examples, start, tmp_path / "task", seed=3, max_length=12)
    found = facts(tmp_path / "task")
    assert found["kind"] == "trained"
    assert found["backbone"]["fingerprint"] == mini.fingerprint
    assert found["backbone"]["name"] == "miniworld"
    assert (found["seed"], found["rows"], found["segments"], found["steps"]) == (3, 48, 48, 4)
    assert found["settings"]["learning_rate"] == 5e-3
    assert found["truncated_prompts"] > 0
    assert found["weights_sha256"] == sha256_file(tmp_path / "task" / "adapter_model.safetensors")
    assert found["libraries"]["torch"] == torch.__version__
    log = read_jsonl(tmp_path / "task" / "training_log.jsonl")
    assert log[-1]["step"] == 4
    assert log[-1]["train_loss"] > 0


@pytest.mark.parametrize(
    ("adapter", "settings"),
    [
        ({}, {}),
        ({"dropout": 0.3}, {"accumulation": 2, "weight_decay": 0.1, "scheduler": "cosine", "warmup": 0.5}),
        ({"type": "ia3"}, {}),
        ({"modules": ("q_proj", "v_proj")}, {"precision": "bfloat16"}),
        ({}, {"steps": None, "epochs": 0.5}),
    ],
)
def test_training_is_repeatable_bit_for_bit(mini, tmp_path, examples, adapter, settings):
    start = begin(mini, tmp_path / "start", **adapter)
    one = trained(mini, examples, start, tmp_path / "one", **settings)
    torch.rand(7)  # whatever happened before
    assert equal(one, trained(mini, examples, start, tmp_path / "two", **settings))
    assert not equal(one, tensors(start))
    assert not equal(one, trained(mini, examples, start, tmp_path / "three", seed=1, **settings))


def test_the_loss_falls(mini, tmp_path, texts):
    start = begin(mini, tmp_path / "start")
    trained(mini, texts, start, tmp_path / "out", steps=30, batch_size=8)
    losses = [
        entry["loss"] for entry in read_jsonl(tmp_path / "out" / "training_log.jsonl") if "loss" in entry
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rows", ["examples", "texts"])
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_gradient_checkpointing_gives_the_same_adapter(request, mini, tmp_path, rows, kind):
    start = begin(mini, tmp_path / "start", type=kind)
    found = [
        trained(
            mini,
            request.getfixturevalue(rows),
            start,
            tmp_path / f"out{kept}",
            gradient_checkpointing=kept,
            steps=3,
        )
        for kept in (False, True)
    ]
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-6, rtol=1e-5)
    assert not equal(found[0], tensors(start))
    layers = load_backbone(mini)[0].modules()
    assert not any(getattr(layer, "gradient_checkpointing", False) for layer in layers)


def test_the_gradient_of_a_step_is_that_of_the_answers_loss(bpe, tmp_path, examples):
    """One plain SGD-like check: the adapter moves against the gradient that autograd gives for the hand-made loss."""
    import peft

    from lingualift.encoding.text import encode_pair

    start = begin(bpe, tmp_path / "start")
    after = trained(
        bpe, examples[:6], start, tmp_path / "out", steps=1, learning_rate=1e-3, warmup=0.0, max_grad_norm=0.0
    )
    model, tokenizer = load_backbone(bpe)
    wrapped = peft.PeftModel.from_pretrained(model, start, is_trainable=True)
    losses = []
    for example in examples[:6]:
        pair = encode_pair(tokenizer, example.prompt, example.answer, 511)
        answer = [*pair.answer, tokenizer.eos_token_id]
        logprobs = torch.log_softmax(wrapped(torch.tensor([pair.prompt + answer])).logits[0], -1)
        losses += [-logprobs[len(pair.prompt) - 1 + place, token] for place, token in enumerate(answer)]
    torch.stack(losses).mean().backward()
    moved = checked = 0
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            before, found = parameter.detach(), after[name.replace(".default", "")]
            strong = parameter.grad.abs() > 1e-4  # Adam's first step is the learning rate against the sign
            checked += strong.sum().item()
            moved += torch.isclose(
                (found - before)[strong], -1e-3 * parameter.grad[strong].sign(), rtol=1e-2, atol=0
            ).sum()
    wrapped.unload()
    assert checked > 100
    assert moved == checked


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}])
def test_the_resident_backbone_is_as_it_was(mini, tmp_path, examples, settings):
    model, _ = load_backbone(mini)
    ids = torch.tensor([[1, 5, 9, 30]])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        before = model(ids).logits
    trained(mini, examples, begin(mini, tmp_path / "start"), tmp_path / "out", **settings)
    assert load_backbone(mini)[0] is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)


def check_divergence(mini, folder, rows, rate):
    output, work = folder / "out", folder / "work"
    output.mkdir()
    settings = Training(steps=20, batch_size=6, learning_rate=rate, max_grad_norm=0.0, checkpoint_steps=2)
    with refused("training", "NaN", "finite", mend="lower `learning_rate`"):
        learn(mini, rows, settings, start=begin(mini, folder / "start"), seed=0, output=output, work=work)
    assert list(output.iterdir()) == []
    assert not work.exists()


@pytest.mark.parametrize("rate", [1e18, 1e36])
def test_a_training_that_diverges_is_told_and_writes_nothing(mini, tmp_path, examples, rate):
    """Rates at which the product of two factors is beyond float32, however a processor rounds."""
    check_divergence(mini, tmp_path, examples, rate)
    with torch.inference_mode():
        assert load_backbone(mini)[0](torch.tensor([[1, 5]])).logits.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverges_late_is_told_and_writes_nothing(mini, tmp_path, examples, value):
    """After the second checkpoint one activation is no number any more."""
    calls = itertools.count(1)

    def spoil(module, given, states):
        return states * value if next(calls) == 5 else None

    hook = load_backbone(mini)[0].model.norm.register_forward_hook(spoil)
    try:
        check_divergence(mini, tmp_path, examples, 1e-3)
    finally:
        hook.remove()
    assert next(calls) > 5


def test_unknown_modules_are_refused_with_the_known_ones(mini, tmp_path):
    with refused("adapter.modules", "'qproj'", "q_proj, up_proj"):
        begin(mini, tmp_path / "start", modules=("qproj",))
    begin(mini, tmp_path / "again")


def test_an_answer_longer_than_a_row_is_refused(mini, tmp_path):
    start = begin(mini, tmp_path / "start")
    with refused("max_length", "3 tokens", "no prompt"):
        trained(
            mini, [Example("0", "the book", ("the red book is here",))], start, tmp_path / "out", max_length=4
        )


def test_progress_counts_every_step(mini, tmp_path, examples):
    seen = []
    (tmp_path / "out").mkdir()
    learn(
        mini,
        examples,
        Training(**SETTINGS),
        start=begin(mini, tmp_path / "start"),
        seed=0,
        output=tmp_path / "out",
        work=tmp_path / "work",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
