"""Names that users type: languages, registered entries, and the errors that correct them."""

import pickle
import re

import pytest
from babel import Locale
from babel.core import get_global
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.errors import UserError, did_you_mean
from lingualift.languages import all_languages, language
from lingualift.registry import Registry

ENTRIES = all_languages()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("en", "eng_Latn"),
        ("eng", "eng_Latn"),
        ("ENG_LATN", "eng_Latn"),
        ("eng-latn", "eng_Latn"),
        ("sw", "swh_Latn"),
        ("swh", "swh_Latn"),
        ("swa", "swh_Latn"),
        ("id", "ind_Latn"),
        ("no", "nob_Latn"),
        ("ace", "ace_Latn"),
        ("ace_Arab", "ace_Arab"),
        ("el", "ell_Grek"),
        ("th", "tha_Thai"),
        ("sw-KE", "swh_Latn"),
        ("sw_ke", "swh_Latn"),
        ("en_XX", "eng_Latn"),
        ("es-419", "spa_Latn"),
        ("zh-CN", "zho_Hans"),
        ("zh-TW", "zho_Hant"),
        ("zh-Hans", "zho_Hans"),
        ("zh-Hans-TW", "zho_Hans"),
        ("cmn-Hant", "zho_Hant"),
        ("fa-AF", "prs_Arab"),
        ("ns", "nso_Latn"),
        ("ff", "fuv_Latn"),
    ],
)
def test_a_code_names_its_language(code, found):
    assert language(code).nllb == found


@given(st.sampled_from(ENTRIES), st.booleans())
def test_every_code_of_the_registry_finds_its_own_entry_in_any_case(entry, upper):
    for code in (entry.code, entry.nllb):
        if code:
            assert language(code.upper() if upper else code) == entry


def test_a_region_names_the_script_that_cldr_has_for_it():
    """Against babel's copy of Unicode CLDR: the entry in that script, or a refusal that names it."""
    likely = get_global("likely_subtags")
    first = {}
    for entry in ENTRIES:
        first.setdefault(entry.code.split("-")[0], entry)
    tried = 0
    for code, known in first.items():
        for region in Locale("en").territories:
            if not re.fullmatch("[A-Z]{2}", region) or region in ("XA", "XB", "ZZ") or code == "fa":
                continue
            script = (
                likely[f"{code}_{region}"].split("_")[1] if f"{code}_{region}" in likely else known.script
            )
            tried += 1
            try:
                found = language(f"{code}-{region}")
            except UserError as error:
                assert f"in the script {script}" in error.found  # noqa: PT017
                assert script != known.script
            else:
                assert (found.iso639_3, found.script) == (known.iso639_3, script)
    assert tried > 40_000


@given(st.sampled_from(ENTRIES), st.sampled_from(["", "-ID", "-br", "-419"]))
def test_a_script_names_the_entry_in_it(entry, region):
    assert language(f"{entry.iso639_3}-{entry.script}{region}") == entry


@pytest.mark.parametrize(
    "code", ["en-sw", "sw-en", "sr-Latn", "pa-PK", "xx-KE", "en-GB-oed", "de-1996", "sw-K"]
)
def test_what_is_not_known_so_is_refused_without_another_language(code):
    with refused(f"'{code}'", "not known", mend=None) as caught:
        language(code)
    guess = re.search("'(.*)'", caught.value.mend or "")
    assert guess is None or language(guess[1]) == language(code.split("-")[0])


def test_every_code_of_m2m100_is_known():
    codes = "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht"
    codes += " hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa"
    codes += " pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
    for code in codes.split():
        assert code in (language(code).code, *language(code).aliases)


def test_codes_and_nllb_codes_are_unique_and_well_formed():
    codes = [entry.code for entry in ENTRIES]
    nllb = [entry.nllb for entry in ENTRIES if entry.nllb]
    assert len(set(codes)) == len(codes) >= 200
    assert len(set(nllb)) == len(nllb) >= 200
    for entry in ENTRIES:
        assert len(entry.iso639_3) == 3
        assert len(entry.script) == 4
        # NLLB's code of Santali names a script that it is not written in.
        assert entry.nllb in ("", f"{entry.iso639_3}_{entry.script}", "sat_Beng")
        assert entry.name


@pytest.mark.parametrize(
    ("wrong", "right"), [("swahilli", "'sw'"), ("eng_Latin", "eng"), ("Indonesain", "'id'"), ("qqq", "")]
)
def test_an_unknown_language_is_refused_with_the_nearest(wrong, right):
    with refused(f"'{wrong}'", "not known", "BCP-47", mend=right):
        language(wrong)


@pytest.mark.parametrize("wrong", ["", " ", "e n", "en\n", "../en"])
def test_what_is_no_code_is_refused(wrong):
    with refused(repr(wrong), "not known"):
        language(wrong)


def test_a_registry_gives_back_what_was_entered_in_order():
    registry = Registry("thing")
    registry.register("b")(1)
    registry.register("a")(2)
    assert (registry["b"], list(registry), list(registry.items())) == (1, ["b", "a"], [("b", 1), ("a", 2)])
    assert ("a" in registry, "c" in registry) == (True, False)


def test_registering_returns_the_entry_itself():
    def entry():
        pass

    assert Registry("thing").register("x")(entry) is entry


def test_a_duplicate_is_our_error_and_keeps_the_first():
    registry = Registry("thing")
    registry.register("x")(1)
    with pytest.raises(ValueError, match="thing 'x' is registered twice: 1, 2"):
        registry.register("x")(2)
    assert registry["x"] == 1


def test_an_unknown_entry_is_the_users_error_with_the_nearest():
    registry = Registry("merge method")
    for name in ("adamergex", "arithmetic"):
        registry.register(name)(name)
    with refused("merge method 'adamerge'", "is not known", mend="adamergex?"):
        registry["adamerge"]
    with refused("'zzz'", "is not known", mend="adamergex, arithmetic"):
        registry["zzz"]


def test_an_empty_registry_says_so():
    with refused("thing 'x'", "is not known", mend="none is registered"):
        Registry("thing")["x"]


def test_the_nearest_names_stand_first_and_are_at_most_three():
    known = ["rank", "ranks", "ranking", "ranked", "alpha"]
    shown = did_you_mean("rnk", known).removeprefix("did you mean ").removesuffix("?").split(" or ")
    assert shown[0] == "rank"
    assert len(shown) <= 3
    assert "alpha" not in shown


parts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(where=parts, found=parts, expected=parts, mend=parts)
def test_an_error_survives_the_way_back_from_a_worker(where, found, expected, mend):
    error = UserError(where, found, expected, mend)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.where, again.mend) == (str(error), where, mend)


def test_an_error_says_where_what_was_found_expected_and_the_mend():
    assert str(UserError("a.csv:3", "is empty")) == "a.csv:3: is empty"
    assert str(UserError("a", "b", "c", "d")) == "a: b; expected c\n  mend: d"
