"""Source states on disk: what is read from there is what the source pass gave, rounded to bfloat16."""

import json
import shutil

import pytest
import torch

from builders import small
from builders.refusals import refused


def sources(given):
    """The source rows of a batch, without padding."""
    pairs = zip(given["source_input_ids"], given["source_attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def by_number(given, numbers=(0, 1, 2)):
    return {**small.target_only(given), "source_rows": torch.tensor(numbers)}


def rounded(model):
    """What the source pass gives, rounded as the cache rounds it."""
    plain = model.source_states

    def states(*args, **more):
        return {key: value.bfloat16().float() for key, value in plain(*args, **more).items()}

    return states


@pytest.mark.parametrize("where", ["block-input", "block-output", "projection-input"])
@pytest.mark.parametrize("name", small.NAMES)
def test_outputs_and_gradients_are_those_of_rounded_states(tmp_path, name, where, monkeypatch):
    model, given = small.fused(name, source_state=where), small.batch(name)
    cache = model.cache_sources(sources(given), tmp_path, tell=lambda line: None)
    assert len(cache) == 3
    found = model(**by_number(given))
    found.loss.backward()
    ours = {key: value.clone() for key, value in small.gradients(model).items()}
    model.zero_grad()
    exact = model(**given).logits
    monkeypatch.setattr(model, "source_states", rounded(model))
    expected = model(**given)
    expected.loss.backward()
    logits = [small.real(each, given, name) for each in (found.logits, expected.logits, exact)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.equal(logits[0], logits[2])
    for key, value in small.gradients(model).items():
        assert torch.allclose(ours[key], value, atol=1e-5, rtol=1e-4), key


def test_no_source_pass_is_run(tmp_path, monkeypatch):
    model, given = small.fused("llama"), small.batch("llama")
    model.cache_sources(sources(given), tmp_path, tell=lambda line: None)
    calls = []
    first = model.get_base_model().model.layers[0]
    first.register_forward_hook(lambda *_: calls.append(1))
    model(**by_number(given))
    assert len(calls) == 1


def test_rows_are_found_by_their_number(tmp_path):
    model, given = small.fused("llama", fusion="cross_attention"), small.batch("llama")
    model.cache_sources(sources(given), tmp_path, batch_size=2, tell=lambda line: None)
    with torch.no_grad():
        straight = model(**by_number(given)).logits
        turned = {key: value[[2, 0, 1]] for key, value in small.target_only(given).items()}
        other = model(**turned, source_rows=torch.tensor([2, 0, 1])).logits
        wrong = model(**turned, source_rows=torch.tensor([0, 1, 2])).logits
        assert torch.allclose(other, straight[[2, 0, 1]], atol=1e-5)
        assert not torch.allclose(wrong, straight[[2, 0, 1]], atol=1e-3)
        prompt = {key: given[key][:, :7] for key in ("input_ids", "attention_mask")}
        how = {
            "max_new_tokens": 4,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        cached = model.generate(**prompt, source_rows=torch.tensor([0, 1, 2]), **how)
        beside = {key: value for key, value in given.items() if key.startswith("source_")}
        passed = model.generate(**prompt, **beside, **how)
    assert torch.allclose(cached.logits[0], passed.logits[0], atol=0.05)
    assert len(cached.logits) == 4


def test_its_size_is_told_first_and_is_true(tmp_path):
    model, given = small.fused("llama"), small.batch("llama")
    told = []

    def tell(line):
        assert not list(tmp_path.rglob("*.bin"))
        told.append(line)

    cache = model.cache_sources(sources(given), tmp_path, tell=tell)
    written = sum(path.stat().st_size for path in cache.folder.glob("*.bin"))
    assert written == 2 * 15 * 32 * 2  # bytes, tokens, width, blocks: q and v of a block read the same
    assert told == [told[0]]
    assert "0.0 MB (3 rows, 15 tokens, 2 times 32 numbers in bfloat16)" in told[0]


def test_what_will_not_fit_is_refused(tmp_path, monkeypatch):
    model, given = small.fused("llama"), small.batch("llama")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with refused(tmp_path.name, "3 rows need 0.0 MB", "free there"):
        model.cache_sources(sources(given), tmp_path, tell=lambda line: None)
    assert not [path for path in tmp_path.rglob("*") if not path.name.endswith(".lock")]
    assert model.source_cache is None


def test_it_is_made_once_and_anew_for_other_rows_weights_or_places(tmp_path):
    given, told = small.batch("llama"), []
    rows = sources(given)

    def make(model, rows=rows):
        return model.cache_sources(rows, tmp_path, tell=told.append).folder

    first = make(small.fused("llama"))
    assert make(small.fused("llama", seed=7, fusion="mul", r=2)) == first  # another adapter, the same states
    assert len(told) == 1
    changed = small.plain("llama")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    others = [
        make(small.fused("llama"), [*rows[:2], [9, *rows[2][1:]]]),
        make(small.fused("llama", changed)),
        make(small.fused("llama", small.plain("llama", rms_norm_eps=1e-3))),
        make(small.fused("llama", source_state="block-output")),
        make(small.fused("llama", fusion_modules=r"model\.layers\.0\.self_attn\.v_proj")),
    ]
    assert len({first, *others}) == 6
    assert len(told) == 6


def test_what_no_cache_can_hold_is_refused(tmp_path):
    given = small.batch("llama")
    rows, quiet = sources(given), lambda line: None
    model = small.fused("llama")
    with refused("source_rows", "no cache"):
        model(**by_number(given))
    with refused("source rows", "row 1", "no token"):
        model.cache_sources([rows[0], []], tmp_path, tell=quiet)
    with refused("source rows", "no rows"):
        model.cache_sources([], tmp_path, tell=quiet)
    with refused("source rows", "1025 tokens", "at most 1024"):
        model.cache_sources([[5] * 1025], tmp_path, tell=quiet)
    with refused("answer_source", "'generate'", "answer anew"):
        small.fused("llama", answer_source="generate").cache_sources(rows, tmp_path, tell=quiet)
    cache = model.cache_sources(rows, tmp_path, tell=quiet)
    with refused("source_rows", "3", "0 to 2"):
        model(**by_number(given, (0, 1, 3)))
    with refused("source_rows", "-1", "0 to 2"):
        model(**by_number(given, (0, 1, -1)))
    with refused("source_rows", "2 rows", "3"):
        model(**by_number(given, (0, 1)))
    with refused("source_rows", "source_input_ids"):
        model(**given, source_rows=torch.tensor([0, 1, 2]))
    model.get_base_model().model.layers[0].mlp.up_proj.weight.requires_grad_()
    with refused("source states", "up_proj.weight"):
        model.cache_sources(rows, tmp_path, tell=quiet)
    (cache.folder / "1.bin").write_bytes(b"")
    with refused(tmp_path.name, "is damaged"):
        small.fused("llama").cache_sources(rows, tmp_path, tell=quiet)
    (cache.folder / "cache.json").write_text(
        json.dumps({"key": "", "lengths": [1], "widths": [], "files": {}})
    )
    with refused(tmp_path.name, "is damaged"):
        small.fused("llama").cache_sources(rows, tmp_path, tell=quiet)
