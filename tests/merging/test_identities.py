"""What must hold whatever the numbers: weight 0, swapped references, peft where peft is right, peft where it is not."""

import warnings

import numpy as np
import pytest
import torch

from builders.adapter_folders import (
    PREFIX,
    config_of,
    distance,
    numbers,
    raw,
    run,
    same,
    three,
    updates,
    write_folder,
    write_lora,
    write_prefix,
    write_vectors,
)
from lingualift.merging import merge

MODULES = {"layers.0.q_proj": (12, 16), "layers.0.v_proj": (14, 16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("space", ["factors", "delta", "core", "cut"])
def test_weight_zero_is_the_task_adapter_bit_for_bit(tmp_path, dtype, space):
    paths = three(tmp_path, write_lora, dtype=dtype, use_rslora=True, alpha_pattern={"q_proj": 3})
    options = {"space": "delta", "rank": 2} if space == "cut" else {"space": space}
    out = run(paths, tmp_path / "out", weight=0, **options)
    assert same(raw(out), raw(paths[0]))
    assert all(distance(updates(out)[name], value) == 0 for name, value in updates(paths[0]).items())


@pytest.mark.parametrize(
    ("write", "rule"),
    [
        (write_vectors, "auto"),
        (write_vectors, "additive"),
        (write_prefix, "auto"),
        (write_prefix, "unanchored"),
    ],
)
def test_weight_zero_is_the_task_adapter_for_other_kinds(tmp_path, write, rule):
    paths = three(tmp_path, write, dtype=torch.bfloat16)
    assert same(raw(run(paths, tmp_path / "out", weight=0, rule=rule)), raw(paths[0]))


def test_weight_zero_drops_a_reference_that_would_divide_by_zero(tmp_path):
    paths = three(tmp_path, write_vectors)
    path = write_folder(
        tmp_path / "zero",
        {name: torch.zeros_like(x) for name, x in raw(paths[2]).items()},
        {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    )
    assert same(raw(run([*paths[:2], path], tmp_path / "out", weight=0)), raw(paths[0]))


@pytest.mark.parametrize("space", ["factors", "delta", "core"])
def test_swapping_the_references_mirrors_the_update(tmp_path, space):
    task, target, source = three(tmp_path, write_lora)
    there = run([task, target, source], tmp_path / "a", weight=0.7, space=space)
    back = run([task, source, target], tmp_path / "b", weight=0.7, space=space)
    read = numbers if space == "factors" else updates
    for name, middle in read(task).items():
        assert distance(read(there)[name] - middle, middle - read(back)[name]) < 1e-6


def test_swapping_the_references_undoes_a_vector_merge_at_weight_one(tmp_path):
    task, target, source = three(tmp_path, write_vectors)
    there = run([task, target, source], tmp_path / "a")
    back = run([there, source, target], tmp_path / "b")
    for name, value in numbers(task).items():
        assert distance(numbers(back)[name], value) < 1e-6


@pytest.mark.parametrize("method", ["arithmetic", "ties", "dare"])
def test_the_mean_divides_the_weights_by_their_sum(tmp_path, method):
    paths = three(tmp_path, write_lora)
    listed, shares = (
        [(path, scale * weight) for path, weight in zip(paths, (0.5, -0.25, 0.75), strict=True)]
        for scale in (4, 1)
    )
    mean = merge(method=method, adapters=listed, mean=True, output=tmp_path / "mean").output
    assert same(raw(mean), raw(merge(method=method, adapters=shares, output=tmp_path / "shares").output))


@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_one_adapter_with_a_weight_is_scaled(tmp_path, weight):
    path = write_lora(tmp_path / "in", seed=1)
    out = merge(method="arithmetic", adapters=[(path, weight)], space="delta", output=tmp_path / "out").output
    assert all(distance(x, weight * updates(path)[name]) < 1e-6 for name, x in updates(out).items())


@pytest.mark.parametrize("space", ["factors", "delta", "core"])
def test_a_second_adapter_of_weight_zero_changes_nothing(tmp_path, space):
    one, two, _ = three(tmp_path, write_lora)
    out = merge(method="arithmetic", adapters=[(one, 1.0), (two, 0.0)], space=space, output=tmp_path / "out")
    assert same(raw(out.output), raw(one))


def test_weights_may_sum_to_zero(tmp_path):
    """The difference of two adapters, which has no mean."""
    one, two, _ = three(tmp_path, write_lora)
    out = merge(method="arithmetic", adapters=[(one, 1.0), (two, -1.0)], space="delta", output=tmp_path / "a")
    for name, value in updates(out.output).items():
        assert distance(value, updates(one)[name] - updates(two)[name]) < 1e-6


@pytest.fixture
def peft_model(tmp_path):
    """Three adapters on a bare module tree of two linear layers."""
    from peft import PeftModel

    paths = three(tmp_path, write_lora, modules=MODULES)
    root = torch.nn.Module()
    layer = torch.nn.Module()
    layer.q_proj, layer.v_proj = torch.nn.Linear(16, 12, bias=False), torch.nn.Linear(16, 14, bias=False)
    root.layers = torch.nn.ModuleList([layer])
    model = PeftModel.from_pretrained(root, paths[0], adapter_name="a0")
    for number in (1, 2):
        model.load_adapter(paths[number], adapter_name=f"a{number}")
    return model, paths


def peft_updates(model, kind, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(["a0", "a1", "a2"], [1, 0.7, -0.7], kind, combination_type=kind, **options)
    layers = model.base_model.model.layers
    return {
        f"layers.0.{end}": getattr(layers[0], end).get_delta_weight(kind).detach().double().numpy()
        for end in ("q_proj", "v_proj")
    }


def test_delta_space_equals_cat_and_full_rank_svd_of_peft(tmp_path, peft_model):
    model, paths = peft_model
    found = updates(run(paths, tmp_path / "out", weight=0.7, space="delta"))
    cut = updates(run(paths, tmp_path / "cut", weight=0.7, space="delta", rank=5))
    for kind, ours, options in (
        ("cat", found, {}),
        ("svd", found, {"svd_rank": 12}),
        ("svd", cut, {"svd_rank": 5}),
    ):
        theirs = peft_updates(model, kind, **options)
        model.delete_adapter(kind)
        for name, value in theirs.items():
            assert distance(ours[name], value) < 2e-6, (kind, options)


def test_peft_linear_is_far_from_equation_7(tmp_path, peft_model):
    """Why this engine exists; see docs/merging.md. Once peft agrees, that page has to change."""
    model, paths = peft_model
    found = updates(run(paths, tmp_path / "out", weight=0.7))
    theirs = peft_updates(model, "linear")
    assert all(distance(theirs[name], value) > 0.3 for name, value in found.items())


def test_a_truncation_that_cuts_nothing_is_exact(tmp_path):
    paths = three(tmp_path, write_lora, modules=MODULES, r=2)
    exact = updates(run(paths, tmp_path / "a", weight=0.7, space="delta"))
    for rank in (6, 9):
        out = run(paths, tmp_path / f"{rank}", weight=0.7, space="delta", rank=rank)
        assert config_of(out)["r"] == 6
        assert all(np.array_equal(value, exact[name]) for name, value in updates(out).items())


def test_no_rank_exceeds_the_module(tmp_path):
    paths = three(tmp_path, write_lora)
    out = run(paths, tmp_path / "out", weight=0.7, space="delta", rank=8)
    ranks = {name: min(x.shape) for name, x in raw(out).items() if "lora_A" in name}
    assert ranks == {
        f"{PREFIX}layers.0.{end}.lora_A.weight": rank for end, rank in (("q_proj", 5), ("v_proj", 3))
    }
    exact = updates(run(paths, tmp_path / "exact", weight=0.7, space="delta"))
    assert all(distance(value, exact[name]) < 1e-6 for name, value in updates(out).items())


def test_equal_lora_a_is_truncated_rightly(tmp_path):
    """A rank-deficient stack, as frozen lora_A leaves it: Cholesky QR must hand over."""
    paths = three(tmp_path, write_lora, modules=MODULES)
    first = raw(paths[0])
    frozen = [
        write_folder(
            tmp_path / f"frozen{number}",
            {name: first[name] if ".lora_A" in name else x for name, x in raw(path).items()},
            {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        )
        for number, path in enumerate(paths)
    ]
    exact = updates(run(frozen, tmp_path / "a", weight=0.7, space="delta"))
    cut = updates(run(frozen, tmp_path / "b", weight=0.7, space="delta", rank=4))
    assert all(distance(cut[name], exact[name]) < 1e-6 for name in exact)
