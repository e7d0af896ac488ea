"""(IA)³, prefix- and prompt-tuning against their formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from builders.adapter_folders import (
    EPS,
    PREFIX,
    config_of,
    distance,
    numbers,
    raw,
    run,
    three,
    ties_by_hand,
    write_folder,
    write_lora,
    write_prefix,
    write_prompt,
    write_vectors,
)
from builders.refusals import refused
from lingualift.merging import merge
from lingualift.merging.methods import ratio


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [-0.5, 0.3, 1.0])
@pytest.mark.parametrize("rule", ["auto", "additive"])
def test_vectors(tmp_path, dtype, weight, rule):
    paths = three(tmp_path, write_vectors, dtype=dtype)
    out = run(paths, tmp_path / "out", weight=weight, rule=rule)
    task, target, source = map(numbers, paths)
    for name, value in numbers(out).items():
        if rule == "auto":
            expected = task[name] * (weight * (target[name] / source[name] - 1) + 1)
        else:
            expected = task[name] + weight * (target[name] - source[name])
        assert distance(value, expected) < 1e-6 + EPS[dtype]
    assert {x.dtype for x in raw(out).values()} == {dtype}


@given(
    st.tuples(*[arrays.arrays(np.float32, (5,), elements=st.floats(0.25, 4, width=32)) for _ in range(3)]),
    st.floats(-2, 2, width=32),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_product_rule(vectors, weight):
    task, target, source = (x.astype(np.float64) for x in vectors)
    expected = task * (weight * (target / source - 1) + 1)
    found = ratio(*vectors, weight)
    assert (
        np.abs(found - expected).max()
        <= 1e-6 * (np.abs(task) * (1 + abs(weight) * (1 + target / source))).max()
    )


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.5, 0.5), (1.0, -0.7, 0.7)])
@pytest.mark.parametrize("method", ["arithmetic", "ties"])
def test_vectors_of_other_methods_are_differences_to_one(tmp_path, weights, method):
    paths = [write_vectors(tmp_path / str(i), i) for i in range(len(weights))]
    out = merge(
        method=method, adapters=list(zip(paths, weights, strict=True)), output=tmp_path / "out"
    ).output
    inputs = [numbers(path) for path in paths]
    for name, value in numbers(out).items():
        differences = [x[name] - 1 for x in inputs]
        if method == "arithmetic":
            expected = 1 + sum(w * x for w, x in zip(weights, differences, strict=True))
        else:
            expected = 1 + ties_by_hand(differences, weights, 0.5)
        assert distance(value, expected) < 1e-6


def test_vectors_keep_the_number_format_of_a_base_of_weight_zero(tmp_path):
    one, two = (
        write_vectors(tmp_path / str(x), x, dtype) for x, dtype in enumerate((torch.bfloat16, torch.float32))
    )
    out = merge(method="arithmetic", adapters=[(one, 0.0), (two, 1.0)], output=tmp_path / "out").output
    assert {x.dtype for x in raw(out).values()} == {torch.bfloat16}
    assert all(distance(x, numbers(two)[name]) < 2 * EPS[torch.bfloat16] for name, x in numbers(out).items())


def test_dare_at_density_one_is_arithmetic_on_vectors(tmp_path):
    paths = [write_vectors(tmp_path / str(i), i) for i in range(2)]
    listed = [(paths[0], 1.0), (paths[1], 0.5)]
    one = merge(method="dare", adapters=listed, density=1, output=tmp_path / "a").output
    two = merge(method="arithmetic", adapters=listed, output=tmp_path / "b").output
    assert all(distance(value, numbers(two)[name]) < 1e-6 for name, value in numbers(one).items())


def test_a_zero_divisor_names_tensor_and_file(tmp_path):
    paths = three(tmp_path, write_vectors)
    tensors = raw(paths[2])
    name = PREFIX + "layers.0.k_proj.ia3_l"
    tensors[name][3] = 0
    broken = write_folder(tmp_path / "broken", tensors, config_of(paths[2]))
    place = f"{broken / 'adapter_model.safetensors'}, tensor {name!r}"
    with refused(place, "element 3 is zero", "no zero", mend='rule="additive"'):
        run([*paths[:2], broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run([*paths[:2], broken], tmp_path / "out", modules="down_proj")


def insertion_by_hand(task, target, source, weight, anchored):
    moved = target @ np.linalg.pinv(source)
    if not anchored:
        return weight * moved @ task
    eye = np.eye(len(task))
    return (weight * (moved - eye) + eye) @ task


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["auto", "unanchored"])
def test_prefix_by_layer_and_by_key_and_value(tmp_path, dtype, rule):
    paths = three(tmp_path, write_prefix, dtype=dtype)
    out = run(paths, tmp_path / "out", weight=0.7, rule=rule)
    task, target, source = (numbers(path)["prompt_embeddings"] for path in paths)
    found = numbers(out)["prompt_embeddings"]
    expected = np.zeros_like(found)
    for block in range(4):  # peft: (tokens, layers·2, width), key before value
        place = slice(8 * block, 8 * block + 8)
        parts = (x[:, place] for x in (task, target, source))
        expected[:, place] = insertion_by_hand(*parts, 0.7, rule == "auto")
    assert distance(found, expected) < 1e-6 + EPS[dtype]


def test_prefix_modules_select_blocks(tmp_path):
    paths = three(tmp_path, write_prefix)
    whole = numbers(run(paths, tmp_path / "a", weight=0.7))["prompt_embeddings"]
    values = numbers(run(paths, tmp_path / "b", weight=0.7, modules=r"layers\.1\.value"))["prompt_embeddings"]
    task = numbers(paths[0])["prompt_embeddings"]
    assert np.array_equal(values[:, :24], task[:, :24])
    assert np.array_equal(values[:, 24:], whole[:, 24:])


def test_prompt_by_sub_module(tmp_path):
    paths = three(tmp_path, write_prompt)
    task, target, source = (numbers(path)["prompt_embeddings"] for path in paths)
    found = numbers(run(paths, tmp_path / "out", weight=0.7))["prompt_embeddings"]
    for rows in (slice(0, 3), slice(3, 6)):
        assert (
            distance(found[rows], insertion_by_hand(task[rows], target[rows], source[rows], 0.7, True)) < 2e-6
        )


def test_arithmetic_on_tokens_sums(tmp_path):
    paths = three(tmp_path, write_prefix)
    out = merge(
        method="arithmetic", adapters=[(paths[0], 1), (paths[1], 0.5)], output=tmp_path / "out"
    ).output
    one, two = (numbers(path)["prompt_embeddings"] for path in paths[:2])
    assert distance(numbers(out)["prompt_embeddings"], one + 0.5 * two) < 1e-6


@pytest.mark.parametrize(
    ("case", "found"), [("equal rows", "rank 2 with 3"), ("more tokens than width", "rank 8 with 9")]
)
def test_dependent_tokens_are_refused(tmp_path, case, found):
    size = {} if case == "equal rows" else {"tokens": 9}
    paths = three(tmp_path, write_prefix, **size)
    matrix = raw(paths[2])
    if case == "equal rows":
        matrix["prompt_embeddings"][1] = matrix["prompt_embeddings"][0]
    broken = write_folder(tmp_path / "broken", matrix, config_of(paths[2]))
    with refused(
        "broken/adapter_model.safetensors, layers.0.key", "dependent", found, "cut-off", mend="fewer"
    ):
        run([*paths[:2], broken], tmp_path / "out")


def test_the_cut_off_is_recorded_and_can_be_set(tmp_path):
    paths = three(tmp_path, write_prefix)
    task, target, source = paths
    roles = {"task": task, "target_reference": target, "source_reference": source}
    report = merge(method="adamergex", **roles, output=tmp_path / "a")
    assert report.cutoff == pytest.approx(8 * 2.0**-23)
    assert f'"cutoff": {report.cutoff}' in (tmp_path / "a/provenance.json").read_text()
    with refused("in2/adapter_model.safetensors, layers.0.key", "rank 1", "3 tokens", "0.9"):
        merge(method="adamergex", **roles, cutoff=0.9, output=tmp_path / "b")


def without(path, module, output):
    tensors = {name: x for name, x in raw(path).items() if module not in name}
    ends = [name for name in ("k_proj", "down_proj") if name != module]
    feedforward = [name for name in ends if name == "down_proj"]
    config = {**config_of(path), "target_modules": ends, "feedforward_modules": feedforward}
    return write_folder(output, tensors, {**config, "exclude_modules": [module]})


@pytest.mark.parametrize("missing", ["down_proj", "k_proj"])
def test_vectors_that_only_one_adapter_has_join_the_configuration(tmp_path, missing):
    """A missing vector is ones, so it adds nothing; a new one is named as it is applied, before or after its layer."""
    first = without(write_vectors(tmp_path / "a", 1), missing, tmp_path / "first")
    second = write_vectors(tmp_path / "second", 2, dtype=torch.bfloat16)
    out = merge(method="arithmetic", adapters=[(first, 1.0), (second, 0.5)], output=tmp_path / "out").output
    one, two = numbers(first), numbers(second)
    assert numbers(out).keys() == two.keys()
    for name, value in numbers(out).items():
        expected = 1 + (one.get(name, np.ones(1)) - 1) + 0.5 * (two[name] - 1)
        assert distance(value, expected) < 1e-6 + EPS[raw(out)[name].dtype]
    assert {name: x.dtype for name, x in raw(out).items()} == {
        name: torch.float32 if name in one else torch.bfloat16 for name in two
    }
    config = config_of(out)
    assert config["target_modules"] == ["layers.0.down_proj", "layers.0.k_proj"]
    assert config["feedforward_modules"] == ["layers.0.down_proj"]
    assert config["exclude_modules"] is None


def test_dependent_virtual_tokens_are_refused_with_the_mend(tmp_path):
    paths = three(tmp_path, write_prefix)
    tensors = raw(paths[2])
    tensors["prompt_embeddings"][1] = 2 * tensors["prompt_embeddings"][0]
    broken = write_folder(tmp_path / "broken", tensors, config_of(paths[2]))
    with refused("broken", "dependent", "rank 2 with 3 tokens", "full rank", mend="fewer") as told:
        run([*paths[:2], broken], tmp_path / "out")
    assert "modules" in told.value.mend


@pytest.mark.parametrize(
    ("write", "options", "where", "found"),
    [
        (write_lora, {}, f"'{PREFIX}layers.0.q_proj.lora_A.weight'", "overflows F32"),
        (write_lora, {"space": "delta"}, f"'{PREFIX}layers.0.q_proj.lora_B.weight'", "overflows F32"),
        (write_lora, {"space": "delta", "rank": 2}, "module 'layers.0.q_proj'", "overflows float32"),
        (write_lora, {"export": "serving"}, f"'{PREFIX}layers.0.q_proj.lora_A.weight'", "overflows F32"),
        (write_vectors, {}, f"'{PREFIX}layers.0.down_proj.ia3_l'", "overflows F32"),
        (write_vectors, {"rule": "additive"}, f"'{PREFIX}layers.0.down_proj.ia3_l'", "overflows F32"),
        (write_prefix, {}, "tensor 'prompt_embeddings'", "overflows F32"),
    ],
)
def test_numbers_too_large_for_float32_are_refused(tmp_path, write, options, where, found):
    with refused(where, found, "finite numbers", mend="use a smaller weight, or"):
        run(three(tmp_path, write), tmp_path / "out", weight=1e39, **options)
    assert not (tmp_path / "out").exists()
