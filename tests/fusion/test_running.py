"""FLARE within the tools that run it: Trainer, two processes, 4-bit weights, the collators of lingualift."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

import lingualift as ll
from builders import small, tiny
from builders.refusals import refused
from lingualift.encoding.collator import Collator
from lingualift.fusion import PairCollator, pair, source_ids

HERE = Path(__file__).parent


def rows(count, seed=0):
    """Encoded rows of a decoder: a prompt, an answer with labels, and a source."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(5, small.WORDS, (length,), generator=generator).tolist()

    targets, sources = [], []
    for _ in range(count):
        prompt, answer = ids(3, 9), ids(1, 4)
        whole = prompt + answer
        labels = [-100] * len(prompt) + answer
        targets.append({"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels})
        sources.append(ids(2, 10))
    return pair(targets, sources)


def collator(trims=False, cached=False):
    return PairCollator(Collator(3, trims_logits=trims), pad=3, cached=cached)


def test_trimmed_logits_change_no_loss():
    """Labels of the last tokens alone still say where the answers start."""
    model = small.fused("llama")
    batch = rows(4)
    whole, trimmed = (model(**collator(trims)(batch)) for trims in (False, True))
    assert trimmed.logits.shape[1] < whole.logits.shape[1]
    assert torch.allclose(trimmed.loss, whole.loss, atol=1e-6)
    given = collator(True)(batch)
    kept = given.pop("logits_to_keep")
    labels = given.pop("labels")
    by_hand = model(**given, answer_start=_answers(collator()(batch)["labels"])).logits[:, -kept:]
    real = labels != -100
    assert torch.allclose(by_hand[real], trimmed.logits[real], atol=1e-5)


def _answers(labels):
    return (labels != -100).int().argmax(1)


def trainer(model, folder, steps, **more):
    how = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": steps,
        "save_steps": 2,
        "seed": 3,
    }
    how |= {"report_to": [], "remove_unused_columns": False, "use_cpu": True, "disable_tqdm": True} | more
    return hf.Trainer(
        model,
        hf.TrainingArguments(str(folder), lr_scheduler_type="constant", **how),
        train_dataset=rows(16),
        data_collator=collator(),
    )


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not-reentrant"])
def test_trainer(tmp_path, checkpointing):
    """It learns, saves what `load_flare` reads, and goes on from a checkpoint as if it had not stopped."""
    more = {}
    if checkpointing is not None:
        more = {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": checkpointing},
        }
    model = small.fused("llama")
    given = collator()(rows(16))
    with torch.no_grad():
        before = model(**given).loss
    found = trainer(model, tmp_path / "run", 6, **more)
    found.train()
    model.eval()
    with torch.no_grad():
        after = model(**given)
    assert after.loss < before - 0.1
    again = ll.load_flare(small.plain("llama"), tmp_path / "run" / "checkpoint-6")
    with torch.no_grad():
        assert torch.equal(again(**given).logits, after.logits)
    other = small.fused("llama", seed=9)
    trainer(other, tmp_path / "run", 6, **more).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")
    )
    with torch.no_grad():
        assert torch.allclose(other.eval()(**given).logits, after.logits, atol=1e-5)


def test_a_trainer_that_drops_the_source_says_so(tmp_path):
    found = trainer(small.fused("llama"), tmp_path, 1, remove_unused_columns=True)
    found.data_collator = Collator(3, trims_logits=False)
    with pytest.raises(RuntimeError, match="remove_unused_columns=False"):
        found.train()


def test_trainer_with_a_cache_learns_what_it_learns_without(tmp_path):
    results = []
    for cached in (False, True):
        model = small.fused("llama")
        found = trainer(model, tmp_path / str(cached), 4)
        if cached:
            sources = [row["source_input_ids"] for row in rows(16)]
            model.cache_sources(sources, tmp_path / "cache", tell=lambda line: None)
            found.data_collator = collator(cached=True)
        found.train()
        with torch.no_grad():
            results.append(model.eval()(**collator()(rows(16))).loss)
    assert abs(results[0] - results[1]) < 0.02


WORKER = """
import sys
sys.path[:0] = sys.argv[2:4]
import torch, torch.distributed as dist, test_running
from builders import small
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = small.fused("llama", small.plain("llama"), seed=rank, fusion=sys.argv[4]).train()  # DDP hands on rank 0's
if sys.argv[5] == "checkpointed":
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
rows = test_running.rows(8)
for step in range(2):
    half = test_running.collator()(rows[4 * step :][:4][2 * rank :][:2])
    optimizer.zero_grad()
    wrapped(**half).loss.backward()
    optimizer.step()
torch.save({key: value for key, value in model.state_dict().items() if "lora_" in key}, f"{sys.argv[1]}/{rank}.pt")
dist.barrier()  # both have saved
dist.destroy_process_group()
"""


FORK = """
import os, socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
os.environ["RANK"] = "0" if os.fork() else "1"
"""


def forked(cli, script, *arguments):
    done = cli.script(script, *arguments, before=FORK)
    assert done.code == 0, done.err


def torchrun(cli, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("launch", [forked, pytest.param(torchrun, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("fusion", "how"),
    [
        pytest.param("add_relu", "plain", marks=pytest.mark.slow),
        ("cross_attention", "checkpointed"),  # does all that the other does
    ],
)
def test_two_processes_learn_what_one_learns(cli, tmp_path, fusion, how, launch):
    """DDP averages the gradients of the halves of every batch."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch(cli, script, tmp_path, HERE.parent, HERE, fusion, how)
    model = small.fused("llama", small.plain("llama"), seed=0, fusion=fusion).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    start = [value.detach().clone() for value in trained]
    for step in range(2):
        halves = [rows(8)[4 * step :][:4][half:][:2] for half in (0, 2)]
        model.zero_grad()
        sum(model(**collator()(half)).loss / 2 for half in halves).backward()
        with torch.no_grad():
            for value in trained:
                value.sub_(0.5 * value.grad)
    assert all(not torch.equal(one, two) for one, two in zip(start, trained, strict=True))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for key, value in found.items():
            assert torch.allclose(value, model.state_dict()[key], atol=1e-5), key


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
@pytest.mark.parametrize("name", small.NAMES)
def test_on_4_bit_weights_it_computes_what_it_does_on_those_unpacked(tmp_path, name, fusion):
    four, exact = small.rounded(name, tmp_path / "backbone")
    given, outputs, gradients = small.batch(name), [], []
    for backbone in (four, exact):
        model = small.fused(name, backbone, fusion=fusion)
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
        model.train()
        output = model(**given)
        output.loss.backward()
        outputs.append(small.real(output.logits.float(), given, name))
        gradients.append(small.gradients(model))
        with model.fusion_off(), torch.no_grad():
            off = model(**small.target_only(given)).logits
    assert torch.allclose(*outputs, atol=1e-4)
    assert not torch.allclose(outputs[0], small.real(off, given, name), atol=1e-2)
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], atol=1e-4, rtol=1e-3), key


def test_a_cache_of_4_bit_weights(tmp_path):
    four, _ = small.rounded("llama", tmp_path / "backbone")
    model, batch = small.fused("llama", four), rows(4)
    cache = model.cache_sources([row["source_input_ids"] for row in batch], tmp_path, tell=lambda line: None)
    with torch.no_grad():
        found, expected = (model(**collator(cached=cached)(batch)).logits for cached in (True, False))
    assert torch.allclose(found, expected, atol=0.05)
    other = small.fused("llama", small.plain("llama"))
    again = other.cache_sources([row["source_input_ids"] for row in batch], tmp_path, tell=lambda line: None)
    assert again.folder != cache.folder


def test_sources_are_encoded_and_paired(tmp_path):
    tokenizer, model = tiny.tokenizer_of("llama"), small.fused("llama")
    ids = source_ids(model, tokenizer, ["a good day", "rain"], max_length=32)
    assert ids[1] == [tokenizer.bos_token_id, *tokenizer("rain", add_special_tokens=False)["input_ids"]]
    for name in ("xlmr", "t5"):
        encoder = tiny.tokenizer_of(name)
        found = source_ids(small.fused(name), encoder, ["rain"])
        assert found == [encoder("rain")["input_ids"]]
        assert found[0][-1] == encoder.eos_token_id
    for texts, found in (
        (["rain", " \n"], "text 1: is empty"),
        (["rain " * 40], "text 0: has .* at most 32"),
    ):
        with pytest.raises(ll.UserError, match=found):
            source_ids(model, tokenizer, texts, max_length=32)
    with refused("source text 0", "tokens", "at most 1024"):
        source_ids(model, tokenizer, ["rain " * 1024])
    with refused("sources", "1 rows", "2, one"):
        pair(rows(2), ids[:1])
    given = collator()(rows(3))
    lengths = [len(row["source_input_ids"]) for row in rows(3)]
    assert given["source_attention_mask"].sum(1).tolist() == lengths
    assert given["source_input_ids"].shape == (3, max(lengths))
