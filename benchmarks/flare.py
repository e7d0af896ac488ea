"""What a training step costs: plain LoRA, FLARE with and without a cache, FLARE-MT, input-level fusion, in one run.

    python benchmarks/flare.py                       # hidden 512, 8 layers, batch 16, length 128; six minutes
    python benchmarks/flare.py --rounds 2 --layers 2 --hidden 64 --length 32   # a taste
    python benchmarks/flare.py --output table.md     # the table, as shown in docs/fusing.md

A Llama with random weights and a small head (under 10% of the arithmetic), LoRA of rank 8 on queries and values. A step
is one forward pass, one backward pass and AdamW. The cases take turns, so that other load on the machine meets all
alike: one step of each makes a round, the first rounds are left out, and a ratio is the median over rounds of the
ratio of two steps of one round. Peak memory is that of a process of its own for each case (Linux: VmHWM).
`input-fusion` is plain LoRA on source and target text in one row, twice as long.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM, M2M100Config, M2M100ForConditionalGeneration

import lingualift as ll

RANK, VOCABULARY, MODULES = 8, 1000, ["q_proj", "v_proj"]
WARM = 2
CASES = ("lora", "flare", "flare, cached", "flare-mt", "flare-mt, cached", "input-fusion")
Step = Callable[[], None]


def backbone(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2 * options.length,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def head_share(options: argparse.Namespace) -> float:
    """Share of the head in the multiplications of a forward pass, attention's own left out."""
    blocks = options.layers * 16 * options.hidden**2
    return VOCABULARY * options.hidden / (blocks + VOCABULARY * options.hidden)


def translator(options: argparse.Namespace) -> M2M100ForConditionalGeneration:
    """An encoder as deep and wide as the backbone, beside a decoder that is never run."""
    config = M2M100Config(
        vocab_size=VOCABULARY,
        d_model=options.hidden,
        encoder_layers=options.layers,
        decoder_layers=1,
        encoder_attention_heads=8,
        encoder_ffn_dim=4 * options.hidden,
        decoder_ffn_dim=options.hidden,
    )
    return M2M100ForConditionalGeneration(config)


def model_of(case: str, options: argparse.Namespace) -> peft.PeftModel:
    if not case.startswith("flare"):
        return peft.get_peft_model(backbone(options), peft.LoraConfig(r=RANK, target_modules=MODULES))
    encoder = translator(options) if case.startswith("flare-mt") else None
    settings = (
        {"source_encoder": "random", "fusion": options.fusion} if encoder else {"fusion": options.fusion}
    )
    config = ll.FlareConfig(r=RANK, target_modules=MODULES, source_state=options.source_state, **settings)
    return ll.flare(backbone(options), config, source_encoder=encoder)


def step_of(case: str, options: argparse.Namespace, folder: Path) -> Step:
    """A training step of a case, on one fixed batch."""
    model = model_of(case, options).train()
    shape = (options.batch, options.length)
    generator = torch.Generator().manual_seed(1)
    target, source = (torch.randint(5, VOCABULARY, shape, generator=generator) for _ in range(2))
    labels = target.clone()
    labels[:, : options.length // 2] = -100
    given = {"input_ids": target, "attention_mask": torch.ones_like(target), "labels": labels}
    if case.endswith("cached"):
        model.cache_sources(source.tolist(), folder / case, tell=lambda line: None)
        given["source_rows"] = torch.arange(options.batch)
    elif case.startswith("flare"):
        given |= {"source_input_ids": source, "source_attention_mask": torch.ones_like(source)}
    elif case == "input-fusion":
        given["input_ids"] = torch.cat([source, target], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["labels"] = torch.cat([torch.full_like(labels, -100), labels], 1)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)

    def step() -> None:
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def times(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each case's steps, round by round."""
    steps = {case: step_of(case, options, folder) for case in CASES}
    found: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(WARM + options.rounds):
        for case, step in steps.items():
            begin = time.perf_counter()
            step()
            if number >= WARM:
                found[case].append(time.perf_counter() - begin)
        print(f"round {number + 1} of {WARM + options.rounds}", file=sys.stderr, flush=True)
    return found


def peak(options: argparse.Namespace, folder: Path, case: str) -> float:
    """Peak resident MB of this process after three steps of a case; the making of its cache counts too."""
    torch.set_num_threads(options.threads)
    step = step_of(case, options, folder)
    for _ in range(3):
        step()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def peaks(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The peak of each case in a process of its own, forked before anything was computed here."""
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(partial(peak, options, folder), CASES, chunksize=1)
    return dict(zip(CASES, found, strict=True))


def table(found: dict[str, list[float]], peaks: dict[str, float], options: argparse.Namespace) -> str:
    lines = [
        f"Llama, hidden {options.hidden}, {options.layers} layers, batch {options.batch}, length {options.length}, "
        f"head {head_share(options):.1%} of the multiplications, rank {RANK}, {options.fusion}, "
        f"{options.source_state}, {options.rounds} rounds, {options.threads} threads",
        "",
        "| step | seconds (median) | to plain LoRA (median of rounds; quartiles) | peak memory | to plain LoRA |",
        "|---|---|---|---|---|",
    ]
    for case, seconds in found.items():
        ratios = [one / plain for one, plain in zip(seconds, found["lora"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        lines.append(
            f"| {case} | {statistics.median(seconds):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {peaks[case]:.0f} MB | {peaks[case] / peaks['lora']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fusion", default="add_relu")
    parser.add_argument("--source-state", default=ll.FlareConfig().source_state)
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = peaks(options, Path(name))
        torch.set_num_threads(options.threads)
        text = table(times(options, Path(name)), found, options)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
