"""Languages that users add: what is said of them, where they are known and where not, and what is refused."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from builders.refusals import refused
from builders.worlds import experiment, write_experiment
from lingualift.cli import app
from lingualift.config import dump_experiment, load_experiment, parse_experiment
from lingualift.data.rows import fill_in
from lingualift.encoding.text import language_tag
from lingualift.languages import all_languages, knowing, language, own_languages, read_languages
from lingualift.metrics.words import words

OWN = {
    "rej": {"name": "Rejang", "script": "Latn", "nllb": "ind_Latn"},
    "sw-Arab": {"name": "Swahili (Ajami)", "script": "Arab"},
    "mad": {"nllb": "ind_Latn"},
    "min-x-pariaman": {"name": "Pariaman", "script": "Latn"},
}
TSV = (
    "code\tname\tscript\tnllb\n"
    "rej\tRejang\tLatn\tind_Latn\n"
    "sw-Arab\tSwahili (Ajami)\tArab\t\n"
    "\n"
    "mad\t\t\tind_Latn\n"
    "min-x-pariaman\tPariaman\tLatn\t\n"
)
DOCS = (Path(__file__).parents[1] / "docs/experiment.md").read_text(encoding="utf-8")


@pytest.fixture
def tsv(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text(TSV, encoding="utf-8")
    return path


def asked(**languages):
    """An experiment into Rejang and French."""
    return experiment(
        Path("data"), languages={"source": "en", "targets": ["rej", "fr"], "own": OWN, **languages}
    )


def test_all_of_nusax_is_known_out_of_the_box():
    codes = ["ace", "ban", "bbc", "bjn", "bug", "id", "jv", "mad", "min", "nij", "su", "en"]
    assert [language(code).code for code in codes] == codes
    assert (language("bbc").name, language("bbc").script) == ("Toba Batak", "Latn")


@pytest.mark.parametrize(
    ("code", "name", "script", "iso639_3"),
    [
        ("rej", "Rejang", "Latn", "rej"),
        ("REJ", "Rejang", "Latn", "rej"),
        ("rej_Latn", "Rejang", "Latn", "rej"),
        ("rej-ID", "Rejang", "Latn", "rej"),
        ("sw-Arab", "Swahili (Ajami)", "Arab", "swh"),
        ("swh_Arab", "Swahili (Ajami)", "Arab", "swh"),
        ("sw-Arab-KE", "Swahili (Ajami)", "Arab", "swh"),
        ("sw", "Swahili", "Latn", "swh"),
        ("mad", "Madurese", "Latn", "mad"),
        ("min-x-pariaman", "Pariaman", "Latn", ""),
        ("min", "Minangkabau", "Latn", "min"),
        ("min-Latn", "Minangkabau", "Latn", "min"),
    ],
)
def test_a_code_names_the_language_that_was_added(code, name, script, iso639_3):
    with knowing(own_languages(OWN)):
        found = language(code)
    assert (found.name, found.script, found.iso639_3) == (name, script, iso639_3)


def test_what_is_added_is_known_in_the_block_alone():
    """Not behind it, not in another thread, not in a block of another experiment within."""
    elsewhere = []

    def ask():
        with refused("'rej'", "is not known", mend="languages.own"):
            language("rej")
        elsewhere.append(all_languages())

    before = all_languages()
    with knowing(own_languages(OWN)):
        assert {"rej", "sw-Arab", "mad"} <= {entry.code for entry in all_languages()}
        assert len(all_languages()) == len(before) + 3  # Madurese was there
        with knowing(()), refused("'rej'", mend="languages.own"):
            language("rej")
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert language("mad").near == "ind_Latn"
    assert elsewhere == [before]
    assert all_languages() == before
    assert language("mad").near == ""
    with refused("'rej'", "is not known", mend="languages.own"):
        language("rej")


def test_a_tsv_says_what_a_mapping_says(tsv):
    assert read_languages(tsv) == OWN
    assert own_languages(tsv) == own_languages(str(tsv)) == own_languages(OWN)
    tsv.write_bytes(b"\xef\xbb\xbf" + TSV.replace("\n", "\r\n").encode())  # as spreadsheets save it
    assert own_languages(tsv) == own_languages(OWN)


@pytest.mark.parametrize(
    ("code", "facts", "found", "mend"),
    [
        (
            "sw",
            {"name": "Mine", "script": "Latn"},
            "known already: Swahili (sw, Latn, NLLB's swh_Latn)",
            "own",
        ),
        ("swh", {"name": "Mine", "script": "Latn"}, "known already", "sw-Arab"),
        ("sw-KE", {"name": "Mine", "script": "Latn"}, "known already", "own"),
        ("sw", {"nllb": "ind_Latn"}, "known already", "own"),
        ("mad", {"name": "Madurese", "script": "Latn"}, "`nllb` alone", "leave it out"),
        ("mad", {"script": "Arab", "nllb": "ind_Latn"}, "`nllb` alone", "leave it out"),
        ("rej", {"script": "Latn"}, "no `name`", "add it"),
        ("rej", {"name": "Rejang"}, "no `script`", "add it"),
        ("rej", {"name": " ", "script": "Latn"}, "blank", "another"),
        ("rej", {"name": "a\nb", "script": "Latn"}, "holds '\\n'", "another"),
        ("rej", {"name": "<b>", "script": "Latn"}, "holds '<'", "another"),
        ("rej", {"name": "R" * 81, "script": "Latn"}, "too long", "another"),
        ("rej", {"name": "Rejang", "script": "Lant"}, "'Lant'", "Latn"),
        ("rej", {"name": "Rejang", "script": "latn"}, "'latn'", "Latn"),
        ("rej", {"name": "Rejang", "script": "Zyyy"}, "'Zyyy'", ""),
        ("rej", {"name": "Rejang", "script": "Latin"}, "'Latin'", "Latn"),
        ("rej", {"name": "Rejang", "script": "Latn", "nllb": "ind_Latin"}, "'ind_Latin'", "ind_Latn"),
        ("rej", {"name": "Rejang", "script": "Latn", "nllb": "id"}, "'id'", "ind_Latn"),
        ("rej", {"name": "Rejang", "script": "Latn", "nllb": "mad_Latn"}, "'mad_Latn'", "leave it out"),
        ("rej-Arab", {"name": "Rejang", "script": "Latn"}, "names the script Arab", "correct"),
        ("rej_Latn", {"name": "Rejang", "script": "Latn"}, "'rej_Latn' is no code", "such a code"),
        ("REJ", {"name": "Rejang", "script": "Latn"}, "'REJ' is no code", "such a code"),
        ("average", {"name": "Rejang", "script": "Latn"}, "'average' is no code", "such a code"),
        ("../x", {"name": "Rejang", "script": "Latn"}, "is no code", "such a code"),
        ("rej", {"nam": "Rejang", "script": "Latn"}, "'nam'", "name"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_code(code, facts, found, mend):
    """From Python by the code, in an experiment by the key."""
    with refused(f"languages.{code}", found, mend=mend):
        own_languages({code: facts})
    key, said = (f"{code}.nam", "") if "nam" in facts else (code, found)
    with refused("experiment", f"languages.own.{key}: ", said, mend, mend="the keys"):
        parse_experiment(asked(own={code: facts}, targets=["fr", "sw"]))


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("", "mine.tsv", "code, name, script, nllb"),
        ("kode\tname\nrej\tRejang\n", "mine.tsv", "'kode name'"),
        ("code\tname\tname\n", "mine.tsv", "code name name"),
        ("code,name,script\nrej,Rejang,Latn\n", "mine.tsv", "code,name,script"),
        ("code\tname\tscript\n\nrej\tRejang\n", "mine.tsv:3", "2 cells"),
        ("code\tname\tscript\nrej\tRejang\tLant\n", "mine.tsv:2", "'Lant'"),
        ("code\tname\tscript\nsw\tMine\tLatn\n", "mine.tsv:2", "known already"),
        ("code\tname\tscript\nrej\tRejang\tLatn\nrej\tMine\tLatn\n", "mine.tsv:3", "twice"),
        ("code\tname\tscript\nxyz\tA\tLatn\nxyz-Latn\tB\tLatn\n", "mine.tsv:3", "xyz-Latn stands here twice"),
        ("code\tnllb\nmad\tind_Latn\nmad-Latn\tind_Latn\n", "mine.tsv:3", "mad stands here twice"),
        ("code\tname\tscript\nxyz-Arab\tA\tArab\nxyz-arab\tB\tArab\n", "mine.tsv:3", "script"),
        ("code\tname\tscript\n\tRejang\tLatn\n", "mine.tsv:2", "'' is no code"),
    ],
)
def test_a_tsv_is_refused_with_the_line(tsv, text, where, found):
    tsv.write_text(text, encoding="utf-8")
    for read in (own_languages, read_languages):
        with refused(where, found):
            read(tsv)


def test_a_file_that_is_none_is_refused(tsv):
    tsv.write_bytes(b"code\tname\n\xff")
    with refused("mine.tsv", "not UTF-8"):
        own_languages(tsv)
    with refused("gone.tsv", "cannot be read"):
        own_languages(tsv.with_name("gone.tsv"))


def test_an_experiment_takes_its_languages_from_a_mapping_or_a_tsv_and_is_the_same(tsv, tmp_path):
    """The run folder keeps what the file says, not its path; `--set` too."""
    raw = asked(groups={"weak": ["rej"]})
    raw["tasks"][0] |= {"targets": ["sw-Arab", "rej"], "tune_on": "rej", "prompt_language": "mad"}
    raw["tasks"][0]["data"]["names"] = {"rej": "rejang"}
    raw["weights"] = {"tune_on": "rej", "curves": ["fr"]}
    mapped = load_experiment(write_experiment(tmp_path / "a.yaml", raw))
    raw["languages"]["own"] = "mine.tsv"
    path = write_experiment(tmp_path / "b.yaml", raw)
    assert load_experiment(path) == mapped
    del raw["languages"]["own"]
    plain = write_experiment(tmp_path / "c.yaml", raw)
    assert load_experiment(plain, ["languages.own=mine.tsv"]) == mapped
    with refused("c.yaml", "is no known language", mend=""):
        load_experiment(plain)
    resolved = dump_experiment(mapped)
    assert "mine.tsv" not in resolved
    assert parse_experiment(yaml.safe_load(resolved)) == mapped
    assert [point.experiment.languages.targets for point in mapped.points()] == [("sw-Arab", "rej")]
    with refused("'rej'"):
        language("rej")


def test_a_misspelt_key_of_an_added_language_is_the_one_thing_told():
    facts = ("languages.own.rej.scrip: ", "not a known key", "did you mean script?")
    with refused("experiment", *facts, mend="the keys") as told:
        parse_experiment(asked(own={"rej": {"name": "Rejang", "scrip": "Latn"}}))
    assert "is no known language" not in str(told.value)


@pytest.mark.parametrize(
    ("own", "key", "found"),
    [
        ("mine.tsv", "own", "'mine.tsv'"),
        (["rej"], "own", "dictionary"),
        ({"rej": "Rejang"}, "own.rej", "'Rejang'"),
        ({"rej": {"name": 7}}, "own.rej.name", "found 7"),
        ({True: {}}, "own.1", "found True"),
    ],
)
def test_what_is_no_mapping_of_languages_is_refused_by_its_key(own, key, found):
    with refused("experiment", f"languages.{key}: ", found, mend="the keys"):
        parse_experiment(asked(own=own))


def test_languages_are_the_same_at_every_point_of_a_grid():
    raw = asked() | {"grid": {"into": {"a": {}, "b": {"languages.targets": ["mad", "rej"]}}}}
    found = [point.experiment.languages for point in parse_experiment(raw).points()]
    assert [one.targets for one in found] == [("rej", "fr"), ("mad", "rej")]
    raw["grid"]["into"]["b"] = {"languages.own.rej.script": "Arab"}
    with refused("experiment", "at into=b, languages.own: ", "the same at every point", mend="the keys"):
        parse_experiment(raw)


def test_words_are_told_apart_as_the_script_is_written():
    """Mon is written in Burmese letters, between which no spaces stand, as in Shan."""
    text = "မန် abc"
    with knowing(own_languages({"mnw": {"name": "Mon", "script": "Mymr"}})):
        assert words(text, "mnw") == words(text, "shn") == ["မ", "န်", "abc"]
    with knowing(own_languages({"mnw": {"name": "Mon", "script": "Latn"}})):
        assert words(text, "mnw") == ["မန်", "abc"]


def tokenizer(*tags):
    return SimpleNamespace(all_special_tokens=list(tags), get_added_vocab=dict)


@pytest.mark.parametrize(
    ("tags", "code", "tag"),
    [
        (["eng_Latn", "ind_Latn"], "rej", ("ind_Latn", "ind_Latn")),
        (["eng_Latn", "ind_Latn"], "mad", ("ind_Latn", "ind_Latn")),
        (["eng_Latn", "ind_Latn"], "id", ("ind_Latn", "ind_Latn")),
        (["ind_Latn", "rej_Latn"], "rej", ("rej_Latn", "rej_Latn")),
        (["ind_Latn", "mad_Latn"], "mad", ("mad_Latn", "mad_Latn")),
        (["__en__", "__id__"], "rej", ("__id__", "id")),
        (["en_XX", "id_ID"], "mad", ("id_ID", "id_ID")),
        (["swh_Latn", "swh_Arab"], "sw-Arab", ("swh_Arab", "swh_Arab")),
    ],
)
def test_a_model_is_told_by_its_own_tag_else_by_the_near_languages(tags, code, tag):
    with knowing(own_languages(OWN)):
        assert language_tag(tokenizer(*tags), code) == tag


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        (["eng_Latn", "fra_Latn"], "rej"),
        (["swh_Latn"], "sw-Arab"),
        (["min_Latn", "__min__"], "min-x-pariaman"),
    ],
)
def test_no_tag_is_borrowed_unasked(tags, code):
    with knowing(own_languages(OWN)), refused(f"'{code}'", "has no tag", mend="languages.own"):
        language_tag(tokenizer(*tags), code)


def test_a_path_never_takes_the_near_languages_code():
    with knowing(own_languages(OWN)):
        assert fill_in("{language}/{iso639_3}/{bcp47}", "rej", "test") == "rej/rej/rej"
        for template, code in (("{nllb}", "mad"), ("{nllb}", "rej"), ("{iso639_3}", "min-x-pariaman")):
            with refused(template, code, mend="{language}"):
                fill_in(template, code, "test")


def test_the_documented_languages_are_read_and_the_tsv_says_the_same(tmp_path):
    section = DOCS.split("## Languages of your own")[1].split("\n## ")[0]
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])["languages"]
    found = parse_experiment(experiment(Path("data"), languages=shown)).languages
    (tmp_path / "mine.tsv").write_text(
        re.search(r"```\n(code.*?)```", section, re.DOTALL)[1], encoding="utf-8"
    )
    assert own_languages(tmp_path / "mine.tsv") == found.added()
    assert [entry.near for entry in found.added()] == ["ind_Latn", "", "ind_Latn"]


def test_the_command_shows_those_of_a_tsv(tsv):
    done = CliRunner().invoke(app, ["languages", "--languages", str(tsv)], catch_exceptions=False)
    assert done.exit_code == 0
    shown = [line.split() for line in done.output.splitlines() if line.strip()]
    assert [line[0] for line in shown if line[0] in OWN] == list(OWN)
    assert "as ind_Latn" in done.output
    assert "Swahili (Ajami)" in done.output
    assert "French" not in done.output
