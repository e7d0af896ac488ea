"""Bottleneck activations of fused layers: what the formula gives, whatever the padding and the batches."""

import json
from dataclasses import replace

import pytest
import torch

from builders import paired, small, tiny
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring
from lingualift.evaluation.likelihood import in_batches
from lingualift.evaluation.runner import evaluate
from lingualift.fusion.layer import RECORD, recording


def inputs_of(model, paths, run):
    """Path -> what went into the layer in a run of the model."""
    found, hooks = {}, []
    for path in paths:

        def keep(module, given, path=path):
            found[path] = given[0].detach()

        hooks.append(model.get_submodule(path).register_forward_pre_hook(keep))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def by_hand(name, model, given):
    """Path -> means of |A·x_S|, |A·x_T| and |f| for every unit, row by row, without padding."""
    plain, base = small.plain(name), model.get_base_model()
    paths = [path for path, module in base.named_modules() if getattr(module, "fusion", None)]
    sums = {path: [0.0] * 5 for path in paths}
    reads = plain.get_encoder() if name in small.ENCODER_DECODERS else plain
    for row in range(3):
        source = given["source_input_ids"][row][given["source_attention_mask"][row].bool()][None]
        target = given["input_ids"][row][given["attention_mask"][row].bool()][None]
        prompt = target.shape[1]
        if name in small.DECODERS:
            prompt = int((given["labels"][row] == -100)[given["attention_mask"][row].bool()].sum())
        theirs = inputs_of(plain, paths, lambda ids=source: reads(input_ids=ids))
        more = {"source_input_ids": source}
        if name in small.DECODERS:
            more["answer_start"] = torch.tensor([prompt])
        elif name in small.ENCODER_DECODERS:
            more["decoder_input_ids"] = torch.tensor([[0]])
        ups = [f"{path}.lora_B.default" for path in paths]
        layers = [f"{path}.base_layer" for path in paths]

        def run(ids=target, more=more):
            model(input_ids=ids, **more)

        ours = inputs_of(base, [*layers, *ups], run)
        for path, layer, up in zip(paths, layers, ups, strict=True):
            A = base.get_submodule(path).lora_A["default"].weight.detach()
            met = min(prompt, source.shape[1])
            found = (
                ((theirs[path] @ A.T)[0].abs()[-met:], met),
                ((ours[layer] @ A.T)[0].abs()[:prompt], prompt),
                (ours[up][0].abs()[:prompt], prompt),
            )
            for place, (values, count) in enumerate(found):
                sums[path][place] += values.sum(0)
                sums[path][3] += count if place == 0 else 0
                sums[path][4] += count if place == 1 else 0
    return {
        path: {"source": s / met, "target": t / real, "fused": f / real}
        for path, (s, t, f, met, real) in sums.items()
    }


def told(found):
    return [(one["layer"], one["module"], one["source"], one["target"], one["fused"]) for one in found]


def same(one, other):
    """Whether two records agree, up to rounding."""
    both = zip(told(one.means()), told(other.means()), strict=True)
    return all(
        here[:2] == there[:2] and here[2:] == pytest.approx(there[2:], rel=1e-5) for here, there in both
    )


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention", "matmul"])
@pytest.mark.parametrize("name", ["llama", "xlmr", "t5"])
def test_they_are_what_the_formula_gives(name, fusion):
    """Rows longer, as long and shorter than their sources, padded on both sides; answers behind prompts."""
    model = small.fused(name, fusion=fusion, source_state="projection-input")
    given = small.batch(name)
    expected = by_hand(name, model, given)
    with torch.no_grad(), recording() as whole:
        model(**given)
    with torch.no_grad(), recording() as parts:
        for rows in (slice(0, 1), slice(1, 3)):
            model(**{key: value[rows] for key, value in given.items()})
    assert len(whole.means()) == len(expected)
    for path, units in expected.items():
        number = int(next(part for part in path.split(".") if part.isdigit()))
        ends = path.rsplit(".", 1)[-1]
        for found in (whole, parts):
            one = next(one for one in found.means() if (one["layer"], one["module"]) == (number, ends))
            for side, each in units.items():
                assert one["units"][side] == pytest.approx(each.tolist(), rel=1e-4, abs=1e-7)
                assert one[side] == pytest.approx(float(each.mean()), rel=1e-4)


def test_nothing_is_recorded_outside():
    model, given = small.fused("llama"), small.batch("llama")
    assert RECORD.get() is None
    with torch.no_grad(), recording() as found:
        with model.fusion_off():
            model(**small.target_only(given))
        assert found.means() == []
    with torch.no_grad():
        model(**given)
    assert found.means() == []
    assert RECORD.get() is None


def test_what_is_generated_is_not_counted():
    model, given = small.fused("llama", fusion="cross_attention"), small.batch("llama")
    prompt = {key: given[key][:, :7] for key in ("input_ids", "attention_mask")}
    beside = {key: value for key, value in given.items() if key.startswith("source_")}
    model.get_base_model().generation_config.eos_token_id = None
    with torch.no_grad(), recording() as whole:
        model(**prompt, **beside)
    with recording() as written:
        model.generate(**prompt, **beside, max_new_tokens=5, do_sample=False)
    assert same(written, whole)
    counts = {tuple(sums.tolist()[-2:]) for sums in written.totals.values()}
    assert counts == {(3 + 4 + 5, 5 + 4 + 7)}  # met positions, and positions


def test_a_position_that_meets_nothing_counts_for_the_target_alone():
    model, given = small.fused("xlmr", padding="right"), small.batch("xlmr")
    one = {key: value[2:] for key, value in given.items()}  # 7 tokens beside 3
    with torch.no_grad(), recording() as found:
        model(**one)
    assert {tuple(sums.tolist()[-2:]) for sums in found.totals.values()} == {(3, 7)}


def test_a_batch_that_fails_is_not_counted_twice():
    model, given = small.fused("xlmr"), small.batch("xlmr")
    failed = []

    def answer(rows):
        with torch.no_grad():
            model(**{key: value[list(rows)] for key, value in given.items()})
        if len(rows) > 1 and not failed:
            failed.append(rows)
            raise MemoryError

    with recording() as found:
        assert [batch for batch, _ in in_batches([0, 1, 2], 2, answer)] == [[0], [1], [2]]
    with torch.no_grad(), recording() as once:
        model(**given)
    assert failed
    assert same(found, once)


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    return {
        name: find_backbone(Backbone(name=str(tiny.build(name, tmp_path_factory.mktemp(name) / "backbone"))))
        for name in ("llama", "t5", "xlmr")
    }


@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_an_evaluation_tells_them_whatever_its_batches(refs, tmp_path, name):
    source = paired.world(tmp_path, "nusax", "id")
    task, examples = source.labelled("id", "train")
    ref = paired.headed(refs[name], source, examples)
    folder = paired.flare_folder(ref, name, tmp_path / "flare")
    one, other = (evaluate(ref, folder, task, examples, Scoring(batch_size=size)) for size in (1, 5))
    layers = 3 if name == "t5" else 2
    modules = sorted(paired.MODULES[name])
    assert [(each["layer"], each["module"]) for each in one.activations] == [
        (layer, module) for layer in range(layers) for module in modules
    ]
    assert {each["layer"] for each in one.activations if "units" in each} == {0}
    for here, there in zip(told(one.activations), told(other.activations), strict=True):
        assert here[2:] == pytest.approx(there[2:], rel=1e-5)
        assert min(here[2:]) > 0
    assert json.loads(json.dumps(one.summary()))["activations"] == one.activations
    moved = evaluate(ref, folder, task, paired.other_sources(examples), Scoring())
    assert told(moved.activations) != told(one.activations)
    alone = [replace(row, source=None) for row in examples]
    plain = evaluate(ref, tmp_path / "flare-first", task, alone, Scoring())
    assert plain.activations == []
    assert "activations" not in plain.summary()
