"""A resolved experiment, written out, is read back as the same experiment."""

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from lingualift.config import Experiment, dump_experiment, load_experiment, parse_experiment

CODES = ["en", "fr", "sw", "no", "id", "eng", "deu", "zh", "nij"]
text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
names = text.filter(lambda name: not set(name) & set("{}"))
positive = st.integers(1, 10_000)
number = st.floats(1e-12, 1e6)
weight = st.floats(0, 1e6)


def optional(**keys):
    return st.fixed_dictionaries({}, optional=keys)


files = st.fixed_dictionaries(
    {"files": st.builds("{}{{language}}/{{split}}{}".format, names, st.sampled_from([".csv", ".jsonl"]))},
    optional={
        "splits": st.dictionaries(st.sampled_from(["train", "validation", "test"]), text),
        "columns": st.dictionaries(text, text, max_size=3),
        "aligned_on": text,
        "max_rows": st.dictionaries(st.sampled_from(["train", "validation", "test"]), positive),
        "sample_seed": st.integers(-(2**63), 2**63 - 1),
    },
)
hub = st.fixed_dictionaries(
    {"hub": names, "revision": st.from_regex(r"\A[0-9a-f]{40}\Z")}, optional={"config": st.just("{nllb}")}
)
training = st.builds(
    lambda length, rest: {**length, **rest},
    st.one_of(st.fixed_dictionaries({"steps": positive}), st.fixed_dictionaries({"epochs": number})),
    optional(
        batch_size=positive,
        accumulation=positive,
        learning_rate=number,
        scheduler=st.sampled_from(["linear", "cosine", "constant", "constant_with_warmup"]),
        warmup=st.floats(0, 0.99),
        weight_decay=weight,
        precision=st.sampled_from(["float32", "bfloat16"]),
        gradient_checkpointing=st.booleans(),
    ),
)
merged = {
    "space": st.sampled_from(["factors", "delta", "core"]),
    "modules": text,
    "module_weights": st.dictionaries(text, weight, max_size=2),
    "layer_weights": st.dictionaries(st.sampled_from(["0", "1-3", "7-11"]), weight),
    "rank": positive,
    "weight": weight,
}
summed = {**merged, "mean": st.booleans(), "combine": st.sampled_from(["sum", "mean"])}
method = st.one_of(
    text,
    st.fixed_dictionaries({"method": st.just("adamergex")}, optional=merged),
    st.fixed_dictionaries({"method": st.sampled_from(["arithmetic", "ties", "dare"])}, optional=summed),
    st.fixed_dictionaries({"method": st.just("x-mixup")}, optional={"ratio": st.floats(0.01, 1)}),
)


@st.composite
def experiments(draw):
    """Mappings that are valid experiments."""
    source, *targets = draw(
        st.lists(st.sampled_from(["en", "fr", "sw", "no", "id", "deu", "nij"]), min_size=2, unique=True)
    )
    some = st.lists(st.sampled_from(targets), min_size=1, unique=True)
    groups = st.dictionaries(
        text.filter(lambda name: name != "average" and name not in CODES), some, max_size=2
    )
    raw = {
        "backbone": draw(
            st.fixed_dictionaries(
                {"name": text}, optional={"dtype": st.sampled_from(["bfloat16"]), "revision": text}
            )
        ),
        "languages": {"source": source, "targets": targets, "groups": draw(groups)},
        "tasks": draw(
            st.lists(
                st.fixed_dictionaries({"task": names, "data": st.one_of(files, hub)}),
                min_size=1,
                max_size=2,
                unique_by=lambda entry: entry["task"].rpartition("/")[2].rpartition(".")[0] or entry["task"],
            )
        ),
        "training": {"task": draw(training), "reference": draw(training)},
        "methods": draw(
            st.lists(method, max_size=3, unique_by=lambda m: m if isinstance(m, str) else m["method"])
        ),
        "seeds": draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=3, unique=True)),
    }
    if draw(st.booleans()):
        raw["weights"] = {
            "tune_on": draw(st.sampled_from(targets)),
            "grid": draw(st.lists(weight, min_size=1, max_size=4, unique=True)),
        }
    if draw(st.booleans()):
        raw["reference"] = {"data": draw(files), "segment_tokens": draw(positive)}
    if draw(st.booleans()):
        raw["adapter"] = draw(
            optional(rank=positive, dropout=st.floats(0, 0.99), modules=st.lists(text, max_size=3))
        )
    return raw


@given(raw=experiments())
def test_dump_then_parse_gives_the_same_experiment(tmp_path, raw):
    found = parse_experiment(raw)
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_experiment(found), encoding="utf-8")
    again = load_experiment(path)
    assert again == found
    assert dump_experiment(again) == dump_experiment(found)


@given(raw=experiments())
def test_what_a_user_writes_as_yaml_is_what_is_parsed(tmp_path, raw):
    path = tmp_path / "written.yaml"
    path.write_text(
        json.dumps(raw, ensure_ascii=False), encoding="utf-8"
    )  # JSON is YAML, with strings in quotes
    assert load_experiment(path) == Experiment.model_validate(raw)


def test_words_that_look_like_numbers_stay_words(tmp_path):
    """`1e5` is a number where it is not quoted."""
    path = tmp_path / "e.yaml"
    raw = {
        "backbone": {"name": "1e5"},
        "languages": {"source": "en", "targets": ["fr"]},
        "tasks": [{"task": "0E0", "data": {"files": "{language}.csv"}}],
        "training": {"task": {"steps": 1, "learning_rate": 5e-5}, "reference": {"steps": 1}},
        "methods": [],
        "seeds": [0],
    }
    path.write_text(dump_experiment(parse_experiment(raw)), encoding="utf-8")
    found = load_experiment(path)
    assert (found.backbone.name, found.tasks[0].task) == ("1e5", "0E0")
    assert found.training.task.learning_rate == 5e-5


@given(raw=experiments())
def test_every_default_is_written_out(raw):
    dumped = yaml.safe_load(dump_experiment(parse_experiment(raw)))
    assert set(dumped) == set(Experiment.model_fields)
    for role in ("task", "reference"):
        assert set(dumped["training"][role]) == set(type(parse_experiment(raw).training.task).model_fields)
