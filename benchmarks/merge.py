"""Merging three LoRA adapters of the Llama-2-7B shape: lingualift beside peft, in one run.

    python benchmarks/merge.py                    # everything, about two minutes on two cores
    python benchmarks/merge.py --quick            # two layers, no peft
    python benchmarks/merge.py --output table.md  # the table, as shown in docs/merging.md

Every lingualift row is a whole process: interpreter start, imports, reading, arithmetic, writing, hashing, fsync.
The copy reads the same input bytes and writes as many bytes as the merge does, with the same fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lingualift.adapters.tensorfile import DTYPES, TensorSpec, write_tensors
from lingualift.merging import algebra

LAYERS, WIDTH, INNER = 32, 4096, 11008
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
NAMES = ("task", "target", "source")
SPACES: dict[str, dict[str, object]] = {
    "factors": {},
    "delta": {"space": "delta"},
    "delta, rank 8": {"space": "delta", "rank": 8},
    "factors, serving": {"export": "serving"},
}
REPEATS = 7
COPY = """
import os, sys
*inputs, output = sys.argv[1:]
left = os.path.getsize(inputs[0])
with open(output, "wb", buffering=0) as out:
    for path in inputs:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                if left > 0:
                    left -= out.write(chunk[:left])
    os.fsync(out.fileno())
"""
PEAK = """
text = open("/proc/self/status").read()
print(text.split("VmHWM:")[1].split()[0])
"""
MERGE = """
import json, sys
from lingualift.merging import merge
task, target, source, output, options = sys.argv[1:]
merge(method="adamergex", task=task, target_reference=target, source_reference=source, weight=0.7, output=output,
      **json.loads(options))
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""
INSPECT = """
import sys
from lingualift.adapters import inspect
assert inspect(sys.argv[1:]).mergeable
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""


def write_adapters(folder: Path, rank: int, layers: int, code: str) -> list[Path]:
    """Three adapters of random numbers whose lora_A grew from one draw, as adapters of one experiment do."""
    paths = []
    for seed, name in enumerate(NAMES):
        path = folder / f"{name}-{rank}-{code}"
        path.mkdir(parents=True)
        specs: list[TensorSpec] = []
        for layer in range(layers):
            for module, (outputs, inputs) in SHAPES.items():
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                specs.append(TensorSpec(f"{prefix}.lora_A.weight", code, (rank, inputs)))
                specs.append(TensorSpec(f"{prefix}.lora_B.weight", code, (outputs, rank)))
        arrays = (draw(spec, number, seed).astype(DTYPES[code]) for number, spec in enumerate(specs))
        write_tensors(path / "adapter_model.safetensors", specs, arrays)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": [module.partition(".")[2] for module in SHAPES],
            "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
        }
        (path / "adapter_config.json").write_text(json.dumps(config))
        paths.append(path)
    return paths


def draw(spec: TensorSpec, number: int, seed: int) -> np.ndarray:
    """A random factor; a lora_A is a common draw and a tenth of an own one."""
    own = np.random.default_rng((number, seed + 1)).standard_normal(spec.shape, dtype=np.float32)
    if "lora_B" in spec.name:
        return own
    return np.random.default_rng((number, 0)).standard_normal(spec.shape, dtype=np.float32) + own / 10


def run_process(code: str, *arguments: object) -> tuple[float, float]:
    """Wall seconds and peak resident MB of one process (Linux: VmHWM)."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", code + PEAK, *map(str, arguments)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begin, int(process.stdout) / 1024


def measured(cases: dict[str, Callable[[], tuple[float, float]]]) -> list[tuple[str, float, float]]:
    """Median wall seconds and highest peak of each case.

    The cases take turns, so that other load on the machine meets all alike; the first round warms the page cache.
    """
    rounds = [{name: case() for name, case in cases.items()} for _ in range(REPEATS + 1)][1:]
    return [
        (
            name,
            statistics.median(times[name][0] for times in rounds),
            max(times[name][1] for times in rounds),
        )
        for name in cases
    ]


def merge_rows(folder: Path, paths: list[Path], label: str) -> list[tuple[str, float, float]]:
    """Copy, merge in every space, and inspect, as whole processes."""
    output = folder / "out"
    weights = [path / "adapter_model.safetensors" for path in paths]

    def case(code: str, *arguments: object) -> tuple[float, float]:
        found = run_process(code, *arguments)
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        return found

    cases = {f"{label}: streaming copy": partial(case, COPY, *weights, output)}
    for name, options in SPACES.items():
        cases[f"{label}: merge, {name}"] = partial(case, MERGE, *paths, output, json.dumps(options))
    cases[f"{label}: inspect"] = partial(case, INSPECT, *paths)
    return measured(cases)


def module_factors(rank: int, outputs: int = WIDTH, inputs: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated factors of three adapters for one module."""
    random = np.random.default_rng(0)
    down = random.standard_normal((3 * rank, inputs), dtype=np.float32)
    return down, random.standard_normal((outputs, 3 * rank), dtype=np.float32)


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, the first left out."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def peft_model(layers: int):
    """A module tree of the Llama-2-7B shape whose weights of one shape share their memory."""
    import torch

    shared = {shape: torch.nn.Parameter(torch.zeros(shape), requires_grad=False) for shape in SHAPES.values()}
    root = torch.nn.Module()
    root.model = torch.nn.Module()
    root.model.layers = torch.nn.ModuleList()
    for _ in range(layers):
        layer = torch.nn.Module()
        layer.self_attn, layer.mlp = torch.nn.Module(), torch.nn.Module()
        for module, shape in SHAPES.items():
            parent, name = module.split(".")
            linear = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta")
            linear.weight = shared[shape]
            setattr(getattr(layer, parent), name, linear)
        root.model.layers.append(layer)
    return root


def peft_rows(paths: list[Path], single: list[Path]) -> tuple[list[tuple[str, float]], dict[str, float]]:
    """Seconds of peft's combinations inside a loaded process, and its errors against the formulas."""
    import torch
    from peft import PeftModel

    torch.set_num_threads(2)

    def load(model, folders):
        wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name="task")
        for name, path in zip(NAMES[1:], folders[1:], strict=True):
            wrapped.load_adapter(path, adapter_name=name)
        return wrapped

    def combine(model, kind: str) -> float:
        begin = time.perf_counter()
        model.add_weighted_adapter(list(NAMES), [1.0, 0.7, -0.7], f"{kind}-merged", combination_type=kind)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    full = load(peft_model(LAYERS), paths)
    rows = [("peft: load three adapters onto a built model", time.perf_counter() - begin)]
    rows += [(f"peft: {kind}, 224 modules", combine(full, kind)) for kind in ("linear", "cat")]
    one = load(peft_model(1), single)
    layer = one.base_model.model.model.layers[0].self_attn.q_proj
    seconds = combine_one(one, layer)
    rows.append(("peft: svd to rank 8, one 4096×4096 module", seconds))
    return rows, peft_errors(full)


def combine_one(model, layer) -> float:
    """Seconds of peft's svd on one module, through its own function."""
    import torch

    begin = time.perf_counter()
    rank = layer.lora_A["task"].weight.shape[0]
    a, b = layer.lora_A["task"].weight, layer.lora_B["task"].weight
    with torch.no_grad():
        model.base_model._svd_generalized_task_arithmetic_weighted_adapter(
            "svd",
            list(NAMES),
            [1.0, 0.7, -0.7],
            rank,
            layer,
            a,
            b,
            None,
            None,
            None,
            full_matrices=True,
            driver=None,
        )
    return time.perf_counter() - begin


def peft_errors(model) -> dict[str, float]:
    """Relative Frobenius distance of ΔW from the formulas, on one module."""
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a = {name: layer.lora_A[name].weight.detach().double().numpy() for name in layer.lora_A}
    b = {name: layer.lora_B[name].weight.detach().double().numpy() for name in layer.lora_B}
    scale = layer.scaling

    def mixed(x):
        return x["task"] + 0.7 * (x["target"] - x["source"])

    factors = scale["task"] * mixed(b) @ mixed(a)
    updates = {name: scale[name] * b[name] @ a[name] for name in NAMES}
    delta = mixed(updates)

    def distance(kind: str, truth: np.ndarray) -> float:
        name = f"{kind}-merged"
        return float(np.linalg.norm(scale[name] * b[name] @ a[name] - truth) / np.linalg.norm(truth))

    return {
        "peft linear, from eq. 7 in factor space": distance("linear", factors),
        "peft linear, from delta space": distance("linear", delta),
        "peft cat, from delta space": distance("cat", delta),
    }


def scaling_rows(folder: Path, layers: int) -> list[tuple[str, float, float]]:
    """One layer of seven modules over ranks: seconds and peak of the process, by space."""
    rows = []
    for rank in (8, 16, 32, 64, 128, 256):
        paths = write_adapters(folder, rank, layers, "F32")
        for name, options in (
            ("factors", {}),
            ("delta", {"space": "delta"}),
            ("delta cut", {"space": "delta"}),
        ):
            options = {**options, **({"rank": rank} if name == "delta cut" else {})}
            output = folder / f"scale-{rank}-{name.replace(' ', '-')}"
            rows.append((f"r={rank}, {name}", *run_process(MERGE, *paths, output, json.dumps(options))))
        for path in folder.iterdir():
            shutil.rmtree(path)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two layers, no peft")
    parser.add_argument("--output", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    layers = 2 if arguments.quick else LAYERS
    lines = [f"{os.cpu_count()} cores; {layers * len(SHAPES)} modules; Python {sys.version.split()[0]}", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_adapters(folder / "f32", 8, layers, "F32")
        rows = merge_rows(folder, paths, "float32")
        rows += merge_rows(folder, write_adapters(folder / "bf16", 8, layers, "BF16"), "bfloat16")
        lines += ["| whole process | seconds | peak MB |", "|---|---|---|"]
        lines += [f"| {label} | {seconds:.2f} | {peak:.0f} |" for label, seconds, peak in rows]
        budget = {label.partition(":")[0]: 3 * seconds + 0.5 for label, seconds, _ in rows if "copy" in label}
        lines += ["", *(f"{label}: 3 × copy + 0.5 s is {limit:.2f} s" for label, limit in budget.items())]
        factors = module_factors(8)
        with threadpool_limits(1, user_api="blas"):  # as merge does
            ours = timed(lambda: algebra.truncate(*factors, 8), 20)
        lines += ["", "| inside a process | seconds |", "|---|---|"]
        lines.append(f"| lingualift: truncate 24 → 8, one 4096×4096 module | {ours:.5f} |")
        if not arguments.quick:
            single = write_adapters(folder / "single", 8, 1, "F32")
            inside, errors = peft_rows(paths, single)
            lines += [f"| {label} | {seconds:.2f} |" for label, seconds in inside]
            lines.append(f"| ratio for one 4096×4096 module | {inside[-1][1] / ours:.0f}× |")
            lines += ["", "| distance of ΔW | relative |", "|---|---|"]
            lines += [f"| {label} | {error:.2g} |" for label, error in errors.items()]
        scaling = folder / "scaling"
        scaling.mkdir()
        lines += ["", "| seven modules, whole process | seconds | peak MB |", "|---|---|---|"]
        lines += [
            f"| {label} | {seconds:.2f} | {peak:.0f} |" for label, seconds, peak in scaling_rows(scaling, 1)
        ]
    table = "\n".join(lines) + "\n"
    print(table)
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
