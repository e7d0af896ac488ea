"""Publishing, against a stand-in for the hub that talks HTTP: what arrives byte by byte, and what is refused."""

import hashlib
import json

import pytest
from huggingface_hub import ModelCard

from builders.adapter_folders import write_lora
from builders.commands import fresh
from builders.refusals import check_refusal, refused
from builders.stand_in import Hub
from lingualift.commands.push import check_repository, published
from lingualift.merging import merge

NAMES = {"adapter_config.json", "adapter_model.safetensors", "README.md", "provenance.json"}


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def adapters(folder, base="some-org/some-model", **more):
    """Three adapters; the references say what languages they are of."""
    sides = {"task": "en", "target": "sw", "source": "en"}
    return [
        write_lora(
            folder / side,
            seed=seed,
            base_model_name_or_path=base,
            task_type="CAUSAL_LM",
            provenance={"language": code},
            **more,
        )
        for seed, (side, code) in enumerate(sides.items())
    ]


def roles(paths):
    return dict(zip(("task", "target_reference", "source_reference"), paths, strict=True))


@pytest.fixture
def merged(tmp_path):
    """A merged adapter whose provenance holds paths of this machine, and the number of a backbone in a folder."""
    merge(method="adamergex", output=tmp_path / "lifted", **roles(adapters(tmp_path)))
    (tmp_path / "lifted" / "training_log.jsonl").write_text("{}")
    (tmp_path / "lifted" / "logs").mkdir()
    (tmp_path / "lifted" / "logs" / "events").write_text("secret")
    return tmp_path / "lifted"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_push_publishes_four_files_byte_by_byte_and_no_path(hub, merged):
    done = fresh("push", merged, "mine/sentiment-sw", **hub.env())
    assert done.code == 0, done.err
    assert f"{hub.endpoint}/mine/sentiment-sw" in done.out
    found = hub.repositories["mine/sentiment-sw"]
    assert not found["private"]
    files = found["files"]
    assert files.keys() == NAMES
    assert files["adapter_model.safetensors"] == (merged / "adapter_model.safetensors").read_bytes()
    assert files["adapter_config.json"] == (merged / "adapter_config.json").read_bytes()
    for name in NAMES - {"adapter_model.safetensors"}:
        assert str(merged.parent) not in files[name].decode()
    assert str(merged.parent) in (merged / "provenance.json").read_text()  # there it says where inputs lay
    facts = json.loads(files["provenance.json"])
    assert [entry["path"] for entry in facts["inputs"]] == ["task", "target", "source"]
    for entry in facts["inputs"]:
        weights = merged.parent / entry["path"] / "adapter_model.safetensors"
        assert entry["weights_sha256"] == sha256(weights.read_bytes())
    card = ModelCard(files["README.md"].decode()).data
    assert card.base_model == "some-org/some-model"
    assert card.language == ["en", "sw"]
    assert tuple(map(card.to_dict().get, ("library_name", "pipeline_tag"))) == ("peft", "text-generation")
    assert {"lingualift", "lora", "merge", "adamergex"} <= set(card.tags)
    assert card.to_dict()["base_model_relation"] == "adapter"
    assert b'adapter = "mine/sentiment-sw"' in files["README.md"]
    assert any("preupload" in call for call in hub.calls)
    assert any(call.startswith("PUT /lfs/") for call in hub.calls)


@pytest.mark.slow  # each command is a new interpreter
def test_a_backbone_in_a_folder_is_published_by_its_last_name(hub, tmp_path):
    folder = tmp_path / "home" / "alice" / "my-backbone"
    merge(method="adamergex", output=tmp_path / "out", **roles(adapters(tmp_path, base=str(folder))))
    assert fresh("push", tmp_path / "out", "mine/x", "--private", **hub.env()).code == 0
    assert hub.repositories["mine/x"]["private"]
    files = hub.repositories["mine/x"]["files"]
    config = json.loads(files["adapter_config.json"])
    assert config.pop("base_model_name_or_path") == "my-backbone"
    own = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert own.pop("base_model_name_or_path") == str(folder)
    assert config == own
    assert b"alice" not in b"".join(files.values())
    assert "base_model" not in ModelCard(files["README.md"].decode()).data.to_dict()
    hashes = json.loads(files["provenance.json"])
    assert hashes["config_sha256"] == sha256(
        files["adapter_config.json"]
    )  # so that a copy of it passes the audit
    again = tmp_path / "downloaded"
    again.mkdir()
    for name, content in files.items():
        (again / name).write_bytes(content)
    assert fresh("inspect", again).code == 0


def test_merge_publishes_what_it_wrote(hub, tmp_path):
    options = [
        item
        for side, path in roles(adapters(tmp_path)).items()
        for item in (f"--{side.replace('_', '-')}", path)
    ]
    done = fresh("merge", *options, "--output", tmp_path / "out", "--push-to-hub", "mine/merged", **hub.env())
    assert done.code == 0, done.err
    assert hub.repositories["mine/merged"]["files"].keys() == NAMES


@pytest.mark.parametrize(
    ("repository", "token", "mend"),
    [
        ("others/x", "hf_stand_in", "settings/tokens; then: "),
        ("mine/x", "hf_wrong", "HF_TOKEN; then: "),
    ],
)
def test_the_hub_refuses_and_nothing_is_lost(hub, merged, repository, token, mend):
    before = {path.name: path.read_bytes() for path in merged.iterdir() if path.is_file()}
    done = fresh("push", merged, repository, **hub.env(token))
    mend += f"lingualift push {merged} {repository}"
    check_refusal(done, repository, "nothing is lost", str(merged), mend=mend)
    assert not hub.repositories
    assert before == {path.name: path.read_bytes() for path in merged.iterdir() if path.is_file()}


@pytest.mark.slow  # each command is a new interpreter
def test_a_public_repository_is_not_taken_for_a_private_one(hub, merged):
    assert fresh("push", merged, "mine/x", **hub.env()).code == 0
    commits = sum("/commit/" in call for call in hub.calls)
    check_refusal(fresh("push", merged, "mine/x", "--private", **hub.env()), "mine/x", "public", "--private")
    assert sum("/commit/" in call for call in hub.calls) == commits


@pytest.mark.parametrize("where", [pytest.param("/commit/", marks=pytest.mark.slow), "/api/repos/create"])
def test_a_hub_that_dies_leaves_the_folder_and_says_how_to_go_on(tmp_path, where):
    options = [
        item
        for side, path in roles(adapters(tmp_path)).items()
        for item in (f"--{side.replace('_', '-')}", path)
    ]
    with Hub(die_at=where) as hub:
        done = fresh("merge", *options, "--output", tmp_path / "out", "--push-to-hub", "mine/x", **hub.env())
        mend = f"lingualift push {tmp_path / 'out'} mine/x"
        check_refusal(done, "mine/x", "nothing is lost", mend=mend)
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
        hub.die_at = None
        assert fresh("push", tmp_path / "out", "mine/x", **hub.env()).code == 0
        assert hub.repositories["mine/x"]["files"].keys() == NAMES


def test_a_name_or_a_login_that_is_missing_is_told_before_any_work(tmp_path):
    options = [
        item
        for side, path in roles(adapters(tmp_path)).items()
        for item in (f"--{side.replace('_', '-')}", path)
    ]
    command = ("merge", *options, "--output", tmp_path / "out")
    check_refusal(fresh(*command, "--push-to-hub", "just-a-name"), "just-a-name", "ORG/NAME")
    check_refusal(fresh(*command, "--push-to-hub", "mine/x"), "hub", "account", mend="hf auth login")
    check_refusal(fresh(*command, "--private"), "--private", "--push-to-hub", mend="ORG/NAME")
    assert not (tmp_path / "out").exists()
    with refused("mine/has--two", "no name"):
        check_repository("mine/has--two")


def test_only_what_lingualift_wrote_and_nobody_changed_is_published(tmp_path, merged):
    alien = write_lora(tmp_path / "alien")
    with refused("/alien", mend="hf upload mine/x"):
        published(alien, "mine/x")
    config = json.loads((merged / "adapter_config.json").read_text())
    (merged / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    with refused("/lifted", "was changed"):
        published(merged, "mine/x")
