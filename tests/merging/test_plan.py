"""What the plan decides for each module, before a number is read."""

import pytest

from builders.adapter_folders import write_lora
from builders.refusals import refused
from lingualift.adapters import open_adapter
from lingualift.merging import METHODS
from lingualift.merging.methods import find_cell
from lingualift.merging.plan import Input, Request, plan_modules

Q, V, K = "layers.0.q_proj", "layers.0.v_proj", "layers.0.k_proj"
SHAPE = (6, 5)
ZERO = "the references' difference counts as zero"


def plan(tmp_path, holders, weights, method="adamergex", space="factors", **more):
    """holders: module names of each adapter."""
    roles = METHODS[method].roles or [f"adapter {number}" for number in range(1, len(holders) + 1)]
    adapters = [
        open_adapter(write_lora(tmp_path / str(number), dict.fromkeys(names, SHAPE), seed=number))
        for number, names in enumerate(holders)
    ]
    inputs = tuple(Input(*item) for item in zip(roles, adapters, weights, strict=True))
    return plan_modules(Request(METHODS[method], find_cell("lora", space, method, "auto"), inputs, **more))


def shown(module):
    """Name, weights by the number of their adapter, and why the base's tensors stay."""
    weights = tuple((int(item.adapter.path.name), item.weight) for item in module.inputs)
    return module.name, weights, module.kept


ROLES = (1.0, 0.7, -0.7)
TERMS = ((0, 1.0), (1, 0.7), (2, -0.7))


def test_shared_modules_are_merged(tmp_path):
    found = plan(tmp_path, [(Q, V)] * 3, ROLES)
    assert tuple(map(shown, found.modules)) == ((Q, TERMS, ""), (V, TERMS, ""))
    assert found.merged == list(found.modules)
    assert found.absent == {}


def test_reasons_to_keep(tmp_path):
    found = plan(tmp_path, [(Q, V, K)] * 3, ROLES, modules="[qv]_proj", module_weights={"v_proj": 0.0})
    assert tuple(map(shown, found.modules)) == (
        (K, (), "left out by modules"),
        (Q, TERMS, ""),
        (V, (), "weight 0"),
    )
    assert found.merged == [found.modules[1]]


def test_weight_zero_keeps_everything(tmp_path):
    found = plan(tmp_path, [(Q, V)] * 3, (1.0, 0.0, 0.0))
    assert tuple(map(shown, found.modules)) == ((Q, (), "weight 0"), (V, (), "weight 0"))


def test_roles_with_missing_modules(tmp_path):
    holders = [(Q, V), (Q, K), (Q,)]
    factors = plan(tmp_path / "a", holders, ROLES)
    assert shown(factors.modules[1]) == (V, (), f"missing in target_reference and source_reference: {ZERO}")
    assert factors.absent == {K: f"missing in task and source_reference: {ZERO}"}
    delta = plan(tmp_path / "b", holders, ROLES, space="delta")
    assert shown(delta.modules[1]) == shown(factors.modules[1])
    assert shown(delta.modules[2]) == (K, ((1, 0.7),), "")
    assert delta.absent == {}


def test_lists_with_missing_modules(tmp_path):
    found = plan(tmp_path, [(Q, V), (Q, K)], (1.0, 0.5), "arithmetic")
    only = "only the first adapter, with weight 1, has a weight here"
    assert tuple(map(shown, found.modules)) == (
        (Q, ((0, 1.0), (1, 0.5)), ""),
        (V, ((0, 1.0),), only),
        (K, ((1, 0.5),), ""),
    )
    scaled = plan(tmp_path / "b", [(Q, V), (Q,)], (2.0, 0.5), "arithmetic")
    assert shown(scaled.modules[1]) == (V, ((0, 2.0),), "")
    dropped = plan(tmp_path / "c", [(Q, V), (Q,)], (0.0, 0.5), "arithmetic")
    assert tuple(map(shown, dropped.modules)) == ((Q, ((1, 0.5),), ""),)
    assert dropped.absent == {V: "no adapter with a weight has it"}


def test_the_first_pattern_that_matches_counts(tmp_path):
    weights = {"q_proj": 0.5, ".*proj": 2.0}
    found = plan(tmp_path, [(Q, V)] * 3, ROLES, module_weights=weights)
    assert tuple(map(shown, found.modules)) == (
        (Q, ((0, 1.0), (1, 0.35), (2, -0.35)), ""),
        (V, ((0, 1.0), (1, 1.4), (2, -1.4)), ""),
    )


def test_patterns_that_match_nothing(tmp_path):
    names = tuple(f"layers.0.m{number:02}" for number in range(14))
    ends = ", ".join(name.rpartition(".")[2] for name in names[:12])
    for number, more in enumerate(({"modules": "x"}, {"module_weights": {"x": 1.0}})):
        with refused(*more, "'x'", "no module", "a path or its end", mend=f": {ends}") as told:
            plan(tmp_path / str(number), [names] * 3, ROLES, **more)
        assert told.value.mend.endswith(ends)


def test_nothing_to_merge(tmp_path):
    for number, (holders, more, reason) in enumerate(
        [
            (
                [(Q, V), (Q,), (Q,)],
                {"modules": "v_proj"},
                f"missing in target_reference and source_reference: {ZERO}",
            ),
            ([(Q,), (Q, K), (Q, K)], {"modules": "k_proj"}, f"missing in task: {ZERO}"),
            (
                [(Q, V), (V,), (Q,)],
                {},
                f"missing in source_reference: {ZERO}; missing in target_reference: {ZERO}",
            ),
        ]
    ):
        with refused("adamergex", f"nothing would be merged ({reason})", "a change", mend='space="delta"'):
            plan(tmp_path / str(number), holders, ROLES, **more)


@pytest.mark.parametrize(
    ("holders", "weights", "more", "reason"),
    [
        ([(Q, V), (Q,)], (1.0, 0.5), {"modules": "v_proj"}, "only the first adapter, with weight 1"),
        ([(Q,)], (2.0,), {"module_weights": {"q_proj": 0.0}}, "(weight 0)"),
    ],
)
def test_lists_that_would_merge_nothing(tmp_path, holders, weights, more, reason):
    with refused("arithmetic", "nothing would be merged", reason, mend='space="delta"'):
        plan(tmp_path, holders, weights, "arithmetic", **more)
