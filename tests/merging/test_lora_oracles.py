"""LoRA merges against formulas written out in float64, over shapes, ranks, number formats, scalings and patterns."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.adapter_folders import (
    EPS,
    PREFIX,
    config_of,
    distance,
    numbers,
    raw,
    scaling_of,
    ties_by_hand,
    updates,
    write_lora,
    write_prefix,
    write_vectors,
)
from builders.refusals import refused
from lingualift.merging import merge

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = st.sampled_from([-1.3, -0.7, 0.25, 0.7, 1.0, 1.5])
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def worlds(draw, one_rank=False):
    """Module shapes, and for three adapters: ranks, alpha, rsLoRA, number format."""
    size = st.integers(2, 9)
    modules = {
        f"layers.{i}.{end}": (draw(size), draw(size)) for i in range(2) for end in ("q_proj", "v_proj")
    }
    rank = draw(st.integers(1, 4))
    adapters = []
    for seed in range(3):
        r = rank if one_rank else draw(st.integers(1, 4))
        odd = {} if one_rank else {name: draw(st.integers(1, 4)) for name in modules if draw(st.booleans())}
        sized = {name: (*shape, odd.get(name, r)) for name, shape in modules.items()}
        adapters.append(
            {
                "modules": sized,
                "seed": seed,
                "r": r,
                "alpha": draw(st.sampled_from([1, 4, 7, 16])),
                "use_rslora": draw(st.booleans()),
                "dtype": draw(st.sampled_from(FORMATS)),
                "alpha_pattern": draw(st.sampled_from([{}, {"q_proj": 3}, {"layers.1.v_proj": 5}])),
            }
        )
    return adapters


def write_three(root: Path, adapters):
    return [write_lora(root / f"in{number}", **facts) for number, facts in enumerate(adapters)]


def roles(paths):
    return dict(zip(("task", "target_reference", "source_reference"), paths, strict=True))


@QUICK
@given(worlds(), WEIGHTS)
def test_delta_space_is_the_formula(adapters, weight):
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        report = merge(
            method="adamergex", **roles(paths), weight=weight, space="delta", output=Path(name) / "out"
        )
        task, target, source = map(updates, paths)
        found = updates(report.output)
        assert found.keys() == task.keys()
        for module in found:
            expected = task[module] + weight * (target[module] - source[module])
            scale = sum(np.linalg.norm(x[module]) for x in (task, target, source))
            rounding = 2 * EPS[adapters[0]["dtype"]] * (1 + abs(weight)) * scale
            assert np.linalg.norm(found[module] - expected) <= 1e-6 * scale + rounding * 1.5


@QUICK
@given(worlds(one_rank=True), WEIGHTS)
def test_factor_space_is_equation_7_on_each_factor(adapters, weight):
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        report = merge(method="adamergex", **roles(paths), weight=weight, output=Path(name) / "out")
        task, target, source = map(numbers, paths)
        found, dtype = numbers(report.output), adapters[0]["dtype"]
        for tensor, value in found.items():
            module = tensor.removeprefix(PREFIX).rpartition(".lora_")[0]
            scales = [scaling_of(config_of(path), module) for path in paths]
            fold = [s / scales[0] if ".lora_B" in tensor else 1.0 for s in scales]
            expected = task[tensor] + weight * (fold[1] * target[tensor] - fold[2] * source[tensor])
            terms = sum(
                np.linalg.norm(f * x[tensor]) for f, x in zip(fold, (task, target, source), strict=True)
            )
            assert (
                np.linalg.norm(value - expected)
                <= 1e-6 * terms + EPS[dtype] * np.linalg.norm(expected) * 1.01
            )
        assert {tensor.dtype for tensor in raw(report.output).values()} == {dtype}


@QUICK
@given(worlds(), st.integers(1, 5))
def test_truncation_leaves_the_energy_that_a_dense_svd_leaves(adapters, rank):
    adapters = [{**facts, "dtype": torch.float32} for facts in adapters]
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        report = merge(
            method="adamergex",
            **roles(paths),
            weight=0.7,
            space="delta",
            rank=rank,
            output=Path(name) / "out",
        )
        task, target, source = map(updates, paths)
        found = updates(report.output)
        kept = total = 0.0
        for module, value in found.items():
            dense = task[module] + 0.7 * (target[module] - source[module])
            energy = np.linalg.svd(dense, compute_uv=False) ** 2
            limit = min(rank, *dense.shape)
            left = np.linalg.norm(value - dense) ** 2
            assert left == pytest.approx(energy[limit:].sum(), abs=1e-6 * energy.sum())
            if module in report.energy:
                assert report.energy[module] == pytest.approx(energy[:limit].sum() / energy.sum(), abs=1e-6)
                kept, total = kept + energy[:limit].sum(), total + energy.sum()
        if report.energy:
            assert report.energy_kept == pytest.approx(kept / total, abs=1e-6)
        else:
            assert report.energy_kept is None


@QUICK
@given(worlds(), st.lists(WEIGHTS, min_size=3, max_size=3), st.booleans())
def test_arithmetic_in_delta_space(adapters, weights, mean):
    adapters = [{**facts, "dtype": torch.float32} for facts in adapters]
    total = math.fsum(weights) if mean else 1.0
    if abs(total) < 0.1:
        return
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        listed = list(zip(paths, weights, strict=True))
        out = Path(name) / "out"
        merge(method="arithmetic", adapters=listed, mean=mean, space="delta", output=out)
        inputs, found = [updates(path) for path in paths], updates(out)
        for module, value in found.items():
            terms = [w / total * x[module] for w, x in zip(weights, inputs, strict=True)]
            assert np.linalg.norm(value - sum(terms)) <= 1e-6 * sum(map(np.linalg.norm, terms))


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.5, 0.5), (-1.0, 2.0), (1.0, -0.7, 0.7)])
def test_arithmetic_in_factor_space_sums_each_factor(tmp_path, weights):
    paths = [write_lora(tmp_path / str(i), seed=i) for i in range(len(weights))]
    out = merge(
        method="arithmetic", adapters=list(zip(paths, weights, strict=True)), output=tmp_path / "out"
    ).output
    inputs = [numbers(path) for path in paths]
    for tensor, value in numbers(out).items():
        expected = sum(w * x[tensor] for w, x in zip(weights, inputs, strict=True))
        assert distance(value, expected) < 1e-6


def test_embeddings_fold_the_scaling_into_a_which_starts_at_zero(tmp_path):
    modules = {"embed_tokens": (6, 20), "layers.0.q_proj": (6, 5)}
    paths = [
        write_lora(tmp_path / str(i), modules, seed=i, alpha=alpha, embedding=("embed_tokens",))
        for i, alpha in enumerate((8, 16, 4))
    ]
    out = merge(method="adamergex", **roles(paths), weight=0.7, output=tmp_path / "out").output
    task, target, source = map(numbers, paths)
    found, name = numbers(out), PREFIX + "embed_tokens.lora_embedding_"
    assert (
        distance(
            found[name + "A"], task[name + "A"] + 0.7 * (2 * target[name + "A"] - source[name + "A"] / 2)
        )
        < 1e-6
    )
    assert (
        distance(found[name + "B"], task[name + "B"] + 0.7 * (target[name + "B"] - source[name + "B"])) < 1e-6
    )
    delta = merge(
        method="adamergex", **roles(paths), weight=0.7, space="delta", output=tmp_path / "delta"
    ).output
    task, target, source = map(updates, paths)
    for module, value in updates(delta).items():
        assert distance(value, task[module] + 0.7 * (target[module] - source[module])) < 1e-6


def test_the_cross_ablation_multiplies_factors(tmp_path):
    paths = [write_lora(tmp_path / str(i), seed=i) for i in range(3)]
    out = merge(
        method="adamergex", **roles(paths), weight=0.3, rule="multiplicative", output=tmp_path / "out"
    ).output
    task, target, source = map(numbers, paths)
    for tensor, value in numbers(out).items():
        expected = task[tensor] * (0.3 * (target[tensor] / source[tensor] - 1) + 1)
        assert distance(value, expected) < 1e-6


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, -0.5, 2.0)])
def test_ties(tmp_path, weights, density):
    paths = [write_lora(tmp_path / str(i), seed=i) for i in range(3)]
    listed = list(zip(paths, weights, strict=True))
    out = merge(method="ties", adapters=listed, density=density, output=tmp_path / "out").output
    inputs = [numbers(path) for path in paths]
    for tensor, value in numbers(out).items():
        assert distance(value, ties_by_hand([x[tensor] for x in inputs], weights, density)) < 1e-6


def cores(paths, module):
    """Core Space with matrices of full size: the bases, and each update in them."""
    factors = []
    for path in paths:
        tensors, name = numbers(path), f"{PREFIX}{module}.lora_"
        factors.append(
            (tensors[f"{name}B.weight"] * scaling_of(config_of(path), module), tensors[f"{name}A.weight"])
        )
    left = np.linalg.svd(np.hstack([up for up, _ in factors]), full_matrices=False)[0]
    right = np.linalg.svd(np.vstack([down for _, down in factors]), full_matrices=False)[2].T
    return left, right, [left.T @ up @ down @ right for up, down in factors]


@QUICK
@given(worlds(), st.lists(WEIGHTS, min_size=3, max_size=3), st.sampled_from([0.2, 0.5, 1.0]))
def test_ties_of_cores(adapters, weights, density):
    adapters = [{**facts, "dtype": torch.float32} for facts in adapters]
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        listed = list(zip(paths, weights, strict=True))
        out = merge(method="ties", adapters=listed, density=density, space="core", output=Path(name) / "out")
        for module, value in updates(out.output).items():
            left, right, found = cores(paths, module)
            expected = left @ ties_by_hand(found, weights, density) @ right.T
            scale = sum(map(np.linalg.norm, found))
            assert np.linalg.norm(value - expected) <= 1e-5 * scale


def test_dare_of_cores_drops_and_rescales_in_the_bases(tmp_path):
    modules = {"layers.0.q_proj": (60, 50, 8)}
    paths = [write_lora(tmp_path / str(seed), modules, seed=seed, r=8) for seed in range(2)]
    out = merge(
        method="dare",
        adapters=[(path, 1.0) for path in paths],
        density=0.25,
        space="core",
        output=tmp_path / "a",
    )
    left, right, (one, two) = cores(paths, "layers.0.q_proj")
    found = left.T @ updates(out.output)["layers.0.q_proj"] @ right
    choices = np.stack([np.zeros_like(one), 4 * one, 4 * two, 4 * (one + two)])
    assert np.abs(choices - found).min(axis=0).max() < 1e-4
    assert 0.3 < np.mean(np.abs(found) > 1e-4) < 0.58  # 1 - 0.75²
    assert out.formula == "M = DARE(wᵢ·Mᵢ), ΔW = U·M·Vᵀ, Mᵢ = Uᵀ·ΔWᵢ·V"


@QUICK
@given(worlds(), WEIGHTS, st.sampled_from([None, 2]))
def test_sums_of_cores_are_sums_of_updates(adapters, weight, rank):
    adapters = [{**facts, "dtype": torch.float32} for facts in adapters]
    with tempfile.TemporaryDirectory() as name:
        paths = write_three(Path(name), adapters)
        core, delta = (
            merge(
                method="adamergex",
                **roles(paths),
                weight=weight,
                space=space,
                rank=rank,
                output=Path(name) / space,
            )
            for space in ("core", "delta")
        )
        expected = updates(delta.output)
        for module, value in updates(core.output).items():
            scale = sum(np.linalg.norm(updates(path)[module]) for path in paths)
            assert np.linalg.norm(value - expected[module]) <= 1e-5 * scale
            assert len(numbers(core.output)[f"{PREFIX}{module}.lora_A.weight"]) <= min(value.shape)


@pytest.mark.parametrize(
    ("depth", "zones", "expected"),
    [
        (32, {}, [1] * 5 + [0.5] + [0] * 23 + [0.5] + [1] * 2),  # the paper's own
        (18, {}, [1] * 3 + [0.5] + [0] * 12 + [0.5] + [1]),
        (12, {}, [1] * 2 + [0] * 9 + [1]),
        (2, {}, [1, 0]),
        (6, {"bottom": 0, "top": 2, "transition": 1}, [0, 0, 0, 0.5, 1, 1]),
        (6, {"bottom": 2, "top": 2, "transition": 1}, [1, 1, 0.5, 0.5, 1, 1]),
        (3, {"bottom": 3, "top": 0}, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("space", ["factors", "delta", "core"])
def test_layers_are_swapped_by_zones(tmp_path, depth, zones, expected, space):
    modules = {f"layers.{block}.q_proj": (4, 5) for block in range(depth)}
    task, target = (
        write_lora(tmp_path / name, modules, seed=seed) for seed, name in enumerate(("task", "target"))
    )
    for weight in (1.0, 0.6):
        report = merge(
            method="layer-swap",
            task=task,
            target_reference=target,
            weight=weight,
            space=space,
            output=tmp_path / f"out{weight}",
            **zones,
        )
        read = numbers if space == "factors" else updates
        one, two, found = map(read, (task, target, report.output))
        for name, value in found.items():
            part = weight * expected[int(name.split("layers.")[1].split(".")[0])]
            assert distance(value, (1 - part) * one[name] + part * two[name]) < 1e-5
        own, given = raw(report.output), raw(task if weight < 1 else target)
        places = [block for block, part in enumerate(expected) if part == (weight == 1)]
        names = [f"{PREFIX}layers.{block}.q_proj.lora_{x}.weight" for block in places for x in "AB"]
        assert all(torch.equal(own[name], given[name]) for name in names)  # what is taken whole, bit for bit


def test_the_depth_is_that_of_all_modules_and_stacks(tmp_path):
    modules = {f"encoder.layers.{block}.q_proj": (4, 5) for block in range(6)}
    modules |= {f"decoder.layers.{block}.q_proj": (4, 5) for block in range(3)} | {"embed": (4, 5)}
    task, target = (write_lora(tmp_path / str(seed), modules, seed=seed) for seed in range(2))
    given = {"method": "layer-swap", "task": task, "target_reference": target, "space": "delta"}
    given |= {"bottom": 1, "top": 1, "transition": 1}
    with refused(
        "layer-swap", "1 blocks at the bottom, 1 at the top and 1 between", "the 3", mend="transition"
    ):
        merge(**given, output=tmp_path / "out")
    given["transition"] = 0
    report = merge(**given, output=tmp_path / "all")
    whole = {
        f"{stack}.layers {block}" for stack, ends in (("encoder", "05"), ("decoder", "02")) for block in ends
    }
    assert report.parts == dict.fromkeys(whole, (1.0,))
    some = merge(**given, modules=r"layers\.[1-5]\..*", output=tmp_path / "some")
    assert some.parts == {"encoder.layers 5": (1.0,), "decoder.layers 2": (1.0,)}


def test_modules_that_one_of_the_two_lacks(tmp_path):
    both = {f"layers.{block}.q_proj": (4, 5) for block in range(4)}
    fewer = {name: shape for name, shape in both.items() if "0" not in name}
    for number, (space, weight) in enumerate((s, w) for s in ("factors", "delta") for w in (1.0, 0.5)):
        folder = tmp_path / str(number)
        task, target = write_lora(folder / "task", both, seed=0), write_lora(folder / "target", fewer, seed=1)
        report = merge(
            method="layer-swap",
            task=task,
            target_reference=target,
            weight=weight,
            space=space,
            bottom=2,
            top=0,
            output=folder / "out",
        )
        found, own = updates(report.output), updates(task)
        if space == "factors":
            assert report.kept["layers.0.q_proj"] == "missing in target_reference"
            assert np.array_equal(found["layers.0.q_proj"], own["layers.0.q_proj"])
        elif weight == 1:
            assert "has none" in report.absent["layers.0.q_proj"]
        else:
            assert np.allclose(found["layers.0.q_proj"], 0.5 * own["layers.0.q_proj"], atol=1e-7)


def test_a_block_may_have_several_parts_and_the_card_tells(tmp_path):
    modules = {f"layers.{block}.{name}_proj": (4, 5) for block in range(3) for name in "qv"} | {
        "embed": (4, 5)
    }
    task, target = (write_lora(tmp_path / str(seed), modules, seed=seed) for seed in range(2))
    report = merge(
        method="layer-swap",
        task=task,
        target_reference=target,
        bottom=1,
        top=0,
        module_weights={"q_proj": 0.1},
        output=tmp_path / "out",
    )
    assert report.parts == {"0": (0.1, 1.0)}
    assert report.kept["embed"] == "outside of blocks"
    assert report.kept["layers.1.q_proj"] == "a block of the task's"
    assert "blocks 0: 0.1 to 1 of the target reference" in (tmp_path / "out/README.md").read_text()
    assert not merge(
        **{
            "method": "layer-swap",
            "task": task,
            "target_reference": target,
            "bottom": 1,
            "top": 1,
            "transition": 0,
        },
        output=tmp_path / "whole",
    ).warnings  # no factors of two draws are mixed


def test_a_swap_that_cannot_be(tmp_path):
    modules = {f"layers.{block}.q_proj": (4, 5) for block in range(2)}
    task, target = (write_lora(tmp_path / str(seed), modules, seed=seed) for seed in range(2))
    given = {"method": "layer-swap", "task": task, "target_reference": target, "output": tmp_path / "out"}
    with refused(
        "layer-swap", "2 blocks at the bottom, 0 at the top and 1 between", "the 2", mend="transition"
    ):
        merge(**given, bottom=2, top=0, transition=1)
    with refused("source_reference", "layer-swap takes none", mend="leave it out"):
        merge(**given, source_reference=target)
    with refused("layer-swap", "nothing would be merged", "a block of the task's", mend="modules"):
        merge(**given, bottom=0)
    with refused("bottom", "greater than or equal to 0"):
        merge(**given, bottom=-1)
    with refused("top", "adamergex does not use it"):
        merge(**{**given, "method": "adamergex"}, source_reference=target, top=1)
    with refused("weight", "1.25", "0 to 1"):
        merge(**given, weight=1.25)


def test_swapped_layers_of_other_kinds(tmp_path):
    for kind, write in (("ia3", write_vectors), ("prefix", write_prefix)):
        task, target = (write(tmp_path / f"{kind}{seed}", seed=seed) for seed in range(2))
        report = merge(
            method="layer-swap", task=task, target_reference=target, bottom=1, top=0, output=tmp_path / kind
        )
        assert report.parts == {"0": (1.0,)}
        found, one, two = map(raw, (report.output, task, target))
        if kind == "ia3":
            assert all(torch.equal(x, (two if ".0." in name else one)[name]) for name, x in found.items())
        else:
            ((_, x),), ((_, own),), ((_, new),) = (list(each.items()) for each in (found, one, two))
            places = (x != own).nonzero()
            assert torch.equal(x[x != own], new[x != own])
            assert 0 < len(places) <= x.numel() / 2


def test_dare_drops_and_rescales_by_its_seed(tmp_path):
    modules = {"layers.0.q_proj": (60, 50), "layers.1.q_proj": (60, 50)}
    paths = [write_lora(tmp_path / str(i), modules, seed=i) for i in range(2)]

    def dare(name, **options):
        listed = (
            [(paths[0], 1.0), (paths[1], 0.0)]
            if options.pop("alone", False)
            else [(paths[0], 1.0), (paths[1], 0.5)]
        )
        return raw(merge(method="dare", adapters=listed, output=tmp_path / name, **options).output)

    first, again, other = dare("a", seed=3), dare("b", seed=3), dare("c", seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    default, zero = dare("e"), dare("f", seed=0)
    assert all(torch.equal(default[name], zero[name]) for name in zero)
    inputs = [numbers(path) for path in paths]
    for tensor, value in dare("d", density=0.25).items():
        x, y = (inputs[i][tensor] * 4 * w for i, w in ((0, 1.0), (1, 0.5)))
        choices = np.stack([np.zeros_like(x), x, y, x + y])
        gaps = np.abs(choices - value.numpy()).min(axis=0)
        assert gaps.max() < 1e-5
        share = np.mean(value.numpy() != 0)
        assert abs(share - (1 - 0.75**2)) < 0.1
    a, b = (first[f"{PREFIX}layers.{i}.q_proj.lora_B.weight"] == 0 for i in (0, 1))
    assert not torch.equal(a, b), "every tensor has a draw of its own"


def test_different_ranks_are_refused_in_factor_space_and_exact_in_delta_space(tmp_path):
    paths = [write_lora(tmp_path / str(i), seed=i, r=r) for i, r in enumerate((4, 2, 2))]
    with refused(str(paths[0]), "'layers.0.q_proj'", "ranks 4, 2, 2", "one rank", mend='space="delta"'):
        merge(method="adamergex", **roles(paths), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(method="adamergex", **roles(paths), output=tmp_path / "out", space="delta")
    assert config_of(tmp_path / "out")["r"] == 8


def test_float16_overflow_is_refused(tmp_path):
    paths = [write_lora(tmp_path / str(i), seed=i, dtype=torch.float16) for i in range(3)]
    with refused("tensor", "F16"):
        merge(method="adamergex", **roles(paths), weight=1e6, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
