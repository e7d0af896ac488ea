"""The pure functions by themselves: number formats, edges, and the path each one takes."""

import numpy as np
import pytest

from builders.adapter_folders import write_lora
from builders.refusals import refused
from lingualift.merging import METHODS, algebra, merge, methods_table
from lingualift.merging.methods import (
    Options,
    ZeroDivisorError,
    adamergex,
    dare,
    method,
    ratio,
    ties,
    trim,
    weighted_sum,
)

RANDOM = np.random.default_rng(0)


def single(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def test_float32_stays_float32():
    x, y, z = single(4, 6), single(4, 6), single(4, 6)
    results = [
        weighted_sum([x, y], [0.5, 0.7]),
        adamergex([x, y, z], [1.0, 0.7, -0.7], Options()),
        ratio(x, y, z, 0.7),
        algebra.insertion(x, y, z, 0.7, cutoff=1e-6),
        algebra.insertion(x, y, z, 0.7, cutoff=1e-6, anchored=False),
        ties([x, y], [1.0, 0.5], Options(density=0.5)),
        dare([x, y], [1.0, 0.5], Options(density=0.5, seed=0)),
        *algebra.concatenate([x, y], [x.T, y.T], [1.0, 0.5]),
        *algebra.truncate(single(3, 6), single(5, 3), 2)[:2],
    ]
    assert {result.dtype for result in results} == {np.dtype(np.float32)}


def test_arguments_are_left_alone():
    x, y, z = single(4, 6), single(4, 6), single(4, 6)
    before = [array.copy() for array in (x, y, z)]
    weighted_sum([x, y], [1.0, 0.7])
    adamergex([x, y, z], [1.0, 0.7, -0.7], Options())
    ratio(x, y, z, 0.7)
    ties([x, y, z], [1.0, 0.7, 0.1], Options(density=0.4))
    assert all(np.array_equal(a, b) for a, b in zip(before, (x, y, z), strict=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: weighted_sum([x, x], [1.0]),
        lambda x: weighted_sum([x], [1.0, 2.0]),
        lambda x: ties([x, x], [1.0], Options(density=0.5)),
        lambda x: algebra.concatenate([x, x], [x.T, x.T], [1.0]),
    ],
)
def test_as_many_weights_as_arrays(call):
    with pytest.raises(ValueError, match="zip"):
        call(single(3, 4))


def test_insertion_is_anchored_unless_told_otherwise():
    x, y, z = single(3, 5), single(3, 5), single(3, 5)
    assert np.allclose(algebra.insertion(x, y, z, 0.0, cutoff=1e-6), x)
    assert np.allclose(algebra.insertion(x, z, z, 0.7, cutoff=1e-6), x, atol=1e-5)
    assert np.allclose(algebra.insertion(x, z, z, 0.7, cutoff=1e-6, anchored=False), 0.7 * x, atol=1e-5)


def test_the_cut_off_is_relative_to_the_largest_singular_value():
    source = np.diag([4.0, 2.0, 1.0]).astype(np.float32)
    task = single(3, 3)
    assert np.allclose(algebra.insertion(task, source, source, 1.0, cutoff=0.24), task, atol=1e-5)
    for cutoff, rank in ((0.25, 2), (0.5, 1)):  # a value at the cut-off counts as zero
        with pytest.raises(
            algebra.RankDeficientError, match=f"rank {rank} with 3 tokens at cut-off {cutoff}"
        ):
            algebra.insertion(task, source, source, 1.0, cutoff=cutoff)
    assert algebra.default_cutoff((3, 100)) == 100 * 2.0**-23


def test_float32_inputs_are_inverted_in_float64():
    """A condition number that float32 could not bear."""
    basis = np.linalg.qr(RANDOM.standard_normal((40, 40)))[0]
    source = (np.diag(np.geomspace(1, 1e-4, 8)) @ basis[:8]).astype(np.float32)
    task = single(8, 40)
    target = single(8, 40)
    expected = target.astype(float) @ np.linalg.pinv(source.astype(float), rcond=1e-9) @ task.astype(float)
    found = algebra.insertion(task, target, source, 1.0, cutoff=1e-6)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("rows", "columns"), [(50, 6), (6, 6), (4, 6)])
def test_thin_qr(rows, columns):
    matrix = RANDOM.standard_normal((rows, columns))
    tall, mix, corner = algebra.thin_qr(matrix)
    basis = tall @ mix
    assert np.allclose(basis.T @ basis, np.eye(min(rows, columns)), atol=1e-9)
    assert np.allclose(basis @ corner, matrix, atol=1e-9)


def test_well_conditioned_stacks_take_the_fast_way(monkeypatch):
    def slow(*_):
        raise AssertionError("Householder's QR was called")

    matrix = RANDOM.standard_normal((50, 6))
    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, "qr", slow)
        assert algebra.thin_qr(matrix)[0] is matrix
        with pytest.raises(AssertionError):
            algebra.thin_qr(np.repeat(matrix, 2, axis=1))
        steep = matrix * np.geomspace(1, 1e-5, 6)
        with pytest.raises(AssertionError):
            algebra.thin_qr(steep)
    basis, mix, _ = algebra.thin_qr(steep)
    assert np.allclose((basis @ mix).T @ (basis @ mix), np.eye(6), atol=1e-12)


def test_truncate_reports_the_energy():
    up, down = np.linalg.qr(single(9, 3))[0] * [3, 2, 1], np.linalg.qr(single(7, 3))[0].T
    _, _, kept, whole = algebra.truncate(down.astype(np.float32), up.astype(np.float32), 2)
    assert (kept, whole) == (pytest.approx(13, rel=1e-5), pytest.approx(14, rel=1e-5))
    new_down, new_up, _, _ = algebra.truncate(down.astype(np.float32), up.astype(np.float32), 2)
    assert np.allclose(new_down @ new_down.T, new_up.T @ new_up, atol=1e-5), "shared evenly"
    assert np.allclose(np.diag(new_up.T @ new_up), [3, 2], atol=1e-5)


def test_truncate_in_float64_where_float32_would_show():
    common = RANDOM.standard_normal((3, 60))
    down = np.concatenate([common, common + 1e-3 * RANDOM.standard_normal((3, 60))]).astype(np.float32)
    up = single(50, 6)
    new_down, new_up, _, _ = algebra.truncate(down, up, 6)
    dense = up.astype(float) @ down.astype(float)
    assert np.linalg.norm(new_up.astype(float) @ new_down - dense) < 2e-7 * np.linalg.norm(dense)


def test_trim_keeps_the_largest():
    array = np.array([[3.0, -1.0], [0.5, -4.0]], np.float32)
    assert trim(array, 0.5).tolist() == [[3, 0], [0, -4]]
    assert trim(array, 0.3).tolist() == [[3, 0], [0, -4]], "rounded up"
    assert trim(array, 0.25).tolist() == [[0, 0], [0, -4]]
    assert trim(array, 1.0).tolist() == array.tolist()


def test_ties_leaves_no_value_where_signs_cancel():
    x = np.array([1.0, -1.0, 2.0], np.float32)
    assert ties([x, -x], [1.0, 1.0], Options(density=1.0)).tolist() == [0, 0, 0]


def test_dare_draws_once_per_adapter_and_rescales():
    ones = np.ones((2000,), np.float32)
    found = dare([ones, ones], [1.0, 10.0], Options(density=0.25, seed=1))
    assert set(np.unique(found)) == {0, 4, 40, 44}
    assert found.mean() == pytest.approx(11, rel=0.15)


def test_pad_keeps_the_product():
    down, up = algebra.pad(single(2, 5), single(4, 2), 3)
    assert (down.shape, up.shape) == ((3, 5), (4, 3))
    assert not down[2:].any()
    assert not up[:, 2:].any()


def test_a_zero_divisor_is_named():
    source = np.array([1.0, 2.0, 0.0, 0.0], np.float32)
    with pytest.raises(ZeroDivisorError, match="element 2 is zero"):
        ratio(source, source, source, 1.0)


def test_a_new_method_is_one_decorated_function(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "largest", None)  # so that it goes at the end
    del METHODS["largest"]

    @method("largest", source="https://example.org", formula="max xᵢ")
    def largest(arrays, weights, options):
        assert isinstance(options, Options)
        assert weights == [1.0, 2.0]
        return np.maximum(*arrays)

    entry = METHODS["largest"]
    assert (entry.name, entry.source, entry.formula) == ("largest", "https://example.org", "max xᵢ")
    assert (entry.roles, entry.linear, entry.combine) == ((), False, largest)
    filled = {
        (cell.kind, cell.formula) for cell in methods_table() if cell.method == "largest" and cell.formula
    }
    assert filled == {
        ("lora", "X = max Xᵢ, X each of lora_A and lora_B"),
        ("lora", "M = max Mᵢ, ΔW = U·M·Vᵀ, Mᵢ = Uᵀ·ΔWᵢ·V"),
        ("ia3", "l = 1 + max (lᵢ − 1)"),
        ("bottleneck", "X = max Xᵢ, X each weight and bias, down and up"),
    }
    paths = [write_lora(tmp_path / str(i), seed=i) for i in range(2)]
    listed = list(zip(paths, (1.0, 2.0), strict=True))
    merge(method="largest", adapters=listed, output=tmp_path / "out")
    with refused("largest on LoRA, space delta", "single elements", mend='space="factors"'):
        merge(method="largest", adapters=listed, space="delta", output=tmp_path / "delta")

    monkeypatch.setitem(METHODS, "steps", None)  # so that it goes at the end
    del METHODS["steps"]
    method("steps", source="s", formula="f", roles=("a", "b"), linear=True)(largest)
    assert (METHODS["steps"].roles, METHODS["steps"].linear) == (("a", "b"), True)
