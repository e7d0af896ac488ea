"""Language registry: what a code in an experiment means.

`languages.tsv` holds the languages of FLORES-200 (NLLB's; https://arxiv.org/abs/2207.04672) and a few of NusaX and
NusaTranslation that NLLB lacks. Codes are BCP-47 (two letters where ISO 639-1 has them); ISO 639-3 codes, NLLB codes,
M2M100's codes and macro-language codes name the same languages. A script or region may follow (`zh-Hans`, `sw-KE`,
`pt_BR`): the language is the same one where it is written so (Unicode CLDR's likely subtags), and else refused.

Users add languages of their own, which are known as long as a block of `knowing` lasts and nowhere else.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from lingualift.errors import UserError, did_you_mean, setting
from lingualift.parsing import LONGEST
from lingualift.provenance import reading

_TAG = re.compile(r"(?P<primary>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?")
_REGIONS = """
AC AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV
BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CP CQ CR CU CV CW CX CY CZ DE DG DJ DK DM DO DZ EA EC EE EG
EH ER ES ET EU EZ FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR
HT HU IC ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS
LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO
NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA QO RE RO RS RU RW SA SB SC SD SE SG SH SI SJ
SK SL SM SN SO SR SS ST SV SX SY SZ TA TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM UN US UY
UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW XX
"""  # CLDR's, and mBART's XX
_WRITTEN_ELSEWHERE = {
    "az": {"Arab": "IQ IR", "Cyrl": "RU"},
    "ha": {"Arab": "CM SD"},
    "kk": {"Arab": "AF CN IR MN"},
    "ky": {"Arab": "CN", "Latn": "TR"},
    "mn": {"Mong": "CN"},
    "ms": {"Arab": "CC"},
    "pa": {"Arab": "PK"},
    "sd": {"Deva": "IN"},
    "sr": {"Latn": "ME RO TR"},
    "tg": {"Arab": "PK"},
    "ug": {"Cyrl": "KZ MN"},
    "uz": {"Arab": "AF", "Cyrl": "CN"},
    "yue": {"Hans": "CN"},
    "zh": {"Hant": "AU BN GB GF HK ID MO PA PF PH SR TH TW US VN"},
}  # script -> regions where it is written otherwise than in the registry (CLDR, likely subtags)


@dataclass(frozen=True)
class Language:
    """A language in one script.

    Attributes:
        code: BCP-47 code, the one used in messages and reports.
        iso639_3: ISO 639-3 code; "" where a user's own code tells none.
        name: English name.
        script: ISO 15924 code of the script.
        nllb: NLLB's code, or "" where NLLB does not have the language.
        aliases: Further codes that mean this language.
        near: NLLB's code of a near language, by a user's choice: its tag is used where a model has none of this one.
    """

    code: str
    iso639_3: str
    name: str
    script: str
    nllb: str
    aliases: tuple[str, ...] = ()
    near: str = ""


OwnLanguages: TypeAlias = Path | str | Mapping[str, Mapping[str, str | None]]
"""Languages of a user's own: a TSV, or code -> its `name`, `script` and `nllb`."""
_FACTS = ("name", "script", "nllb")
_ADDED = f"languages.own in an experiment file, {setting('languages')} elsewhere"
_own: ContextVar[tuple[Language, ...]] = ContextVar("own languages", default=())


def language(code: str) -> Language:
    """The language of a BCP-47, ISO 639-3 or NLLB code, in any letter case, with or without a script and a region.

    Raises:
        UserError: no such language, with the closest codes and names; or it is not known in that script.
    """
    own = _own.get()
    found = _find(code, own)
    if found is None:
        raise UserError(
            f"language {code!r}",
            "is not known",
            "a BCP-47, ISO 639-3 or NLLB code",
            f"{_guess(code, own)} Or add it: {_ADDED}",
        )
    return found


def _guess(code: str, own: tuple[Language, ...]) -> str:
    """What somebody may have meant by a code that is not known."""
    index, tag = _index(own), _tag(code)
    names = {entry.name.lower(): entry.code for entry in _known(own)}
    first, *rest = tag.split("-")
    if rest:
        close = [first] if first in index else []
    else:
        close = difflib.get_close_matches(tag, [*index, *names], n=1, cutoff=0.6)
    return f"did you mean {names.get(close[0], close[0])!r}?" if close else "see `lingualift languages`."


def _tag(code: str) -> str:
    return code.lower().replace("_", "-")


def _find(code: str, own: tuple[Language, ...]) -> Language | None:
    """The language of a code; None where there is none.

    Raises:
        UserError: it is not known in the script that the code names.
    """
    return _index(own).get(_tag(code)) or _of_tag(code, own)


def _of_tag(code: str, own: tuple[Language, ...]) -> Language | None:
    """The language of a tag with a script or region, in the script that it names or that is written there."""
    parts = _TAG.fullmatch(_tag(code))
    known = _index(own).get(parts["primary"]) if parts else None
    if parts is None or known is None:
        return None
    region = (parts["region"] or "").upper()
    if region.isalpha() and region not in _REGIONS.split():
        return None
    elsewhere = _WRITTEN_ELSEWHERE.get(known.code, {}).items()
    there = (script for script, regions in elsewhere if region in regions.split())
    script = parts["script"].title() if parts["script"] else next(there, known.script)
    scripts = {entry.script: entry for entry in _known(own) if entry.iso639_3 == known.iso639_3 != ""}
    scripts.setdefault(known.script, known)
    if script not in scripts:
        raise UserError(
            f"language {code!r}",
            f"is {known.name} in the script {script}, which is not known",
            " or ".join(f"{entry.code} ({entry.script})" for entry in scripts.values()),
            f"name it so, or add it: {_ADDED}",
        )
    return scripts[script]


def all_languages() -> tuple[Language, ...]:
    """Every language that is known here: those of a user's own, then the registry's, sorted by code."""
    return _known(_own.get())


@functools.lru_cache(maxsize=64)
def _known(own: tuple[Language, ...]) -> tuple[Language, ...]:
    codes = {entry.code for entry in own}
    return (*own, *(entry for entry in _registry() if entry.code not in codes))


@functools.cache
def _registry() -> tuple[Language, ...]:
    table = (
        resources.files("lingualift").joinpath("languages.tsv").read_text(encoding="utf-8").splitlines()[1:]
    )
    rows = (line.split("\t") for line in table)
    return tuple(
        Language(code, iso, name, script, nllb, tuple(aliases.split()))
        for code, iso, aliases, name, script, nllb in rows
    )


@functools.lru_cache(maxsize=64)
def _index(own: tuple[Language, ...]) -> dict[str, Language]:
    index: dict[str, Language] = {}
    for entry in _known(own):
        index.setdefault(entry.code.lower(), entry)
    for entry in (*_registry(), *own):  # codes of the registry's own win over other names of another entry
        for name in (*entry.aliases, entry.iso639_3, entry.nllb.replace("_", "-")):
            if name:
                index.setdefault(name.lower(), index[entry.code.lower()])
    return index


@contextlib.contextmanager
def knowing(own: tuple[Language, ...]) -> Iterator[None]:
    """Let these languages of a user's own, and no others, be known beside the registry's while the block lasts."""
    before = _own.set(own)
    try:
        yield
    finally:
        _own.reset(before)


def known_here() -> tuple[Language, ...]:
    """The languages of a user's own that are known here, for a process that works on this one's behalf."""
    return _own.get()


def own_facts(*codes: str | None) -> dict[str, dict[str, dict[str, str]]]:
    """What a user says of languages of their own among some codes, for provenance and for what is known by it.

    Returns:
        `own_languages`: code -> `name`, `script` and, if one is named, `nllb`, the tag of a near language. Empty where
        the registry has all of them.
    """
    found = dict.fromkeys(known for known in map(language, filter(None, codes)) if known in _own.get())
    said = {
        known.code: {
            "name": known.name,
            "script": known.script,
            **({"nllb": known.near} if known.near else {}),
        }
        for known in found
    }
    return {"own_languages": said} if said else {}


def tag_notes(own: Iterable[Language]) -> list[str]:
    """Whose tags languages of a user's own borrow, a sentence each."""
    return [
        f"{entry.name} ({entry.code}) is tagged {entry.near}, as {language(entry.near).name}, for models that tag "
        "their texts and have no tag of it"
        for entry in own
        if entry.near
    ]


def own_languages(given: OwnLanguages | None, where: str = "languages") -> tuple[Language, ...]:
    """Languages of a user's own, checked.

    Args:
        given: A TSV, or what is said of each code; None for none.
        where: What messages call the mapping.

    Raises:
        UserError: a code that is known already or none, a bad script, an NLLB tag that is not known, a missing name;
            the line of a TSV, or the code, is named.
    """
    if given is None:
        return ()
    if isinstance(given, Path | str):
        return tuple(entry for entry, _ in _read(Path(given)))
    found: dict[str, Language] = {}
    for code, facts in given.items():
        _add(found, code, facts, f"{where}.{code}")
    return tuple(found.values())


def read_languages(path: Path) -> dict[str, dict[str, str]]:
    """The languages of a TSV, as a mapping says them; errors as for `own_languages`."""
    return dict(row for _, row in _read(path))


def _read(path: Path) -> list[tuple[Language, tuple[str, dict[str, str]]]]:
    """The languages of a TSV, each with its code and what the file says of it."""
    found: dict[str, Language] = {}
    rows: list[tuple[str, dict[str, str]]] = []
    head, *lines = _lines(path)
    for number, cells in lines:
        where = f"{path}:{number}"
        if len(cells) != len(head[1]):
            raise UserError(where, f"has {len(cells)} cells", f"{len(head[1])}, as its header", _TABS)
        said = {name: cell for name, cell in zip(head[1], cells, strict=True) if cell}
        code = said.pop("code", "")
        _add(found, code, said, where)
        rows.append((code, said))
    return list(zip(found.values(), rows, strict=True))


_TABS = "part the cells by tabs; an empty cell says nothing"


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not blank, the header first."""
    expected = f"a TSV with the columns code, {', '.join(_FACTS)}"
    try:
        with reading(path, expected), path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
    except UnicodeDecodeError:
        raise UserError(path, "is not UTF-8", expected, "write the file again, in UTF-8") from None
    if len(text) > LONGEST:
        raise UserError(path, f"has more than {LONGEST:,} characters", expected, "check the path")
    lines = [
        (number, [cell.strip() for cell in line.split("\t")])
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    head = lines[0][1] if lines else []
    strange = [name for name in head if name not in ("code", *_FACTS)]
    if "code" not in head or strange or len(set(head)) < len(head):
        raise UserError(path, f"begins with {' '.join(head)[:80]!r}", expected, f"write that header; {_TABS}")
    return lines


_CODE = re.compile(r"[a-z]{2,3}(?:-(?P<script>[A-Za-z]{4}))?(?P<more>(?:-[A-Za-z0-9]{1,8})*)")


def _add(found: dict[str, Language], code: Any, facts: Mapping[str, str | None], where: str) -> None:
    """Check a language of a user's own and put it beside those that were found before it."""
    strange = [name for name in facts if name not in _FACTS]
    if strange:
        raise UserError(where, f"says {strange[0]!r}", ", ".join(_FACTS), did_you_mean(strange[0], _FACTS))
    said = {name: value for name, value in facts.items() if value is not None}
    parts = _CODE.fullmatch(code) if isinstance(code, str) else None
    if parts is None:
        expected = "ISO 639-3 or BCP-47, such as xyz, sw-Arab or min-x-pariaman"
        raise UserError(where, f"{code!r} is no code of a language", expected, "write such a code")
    known = _known_as(code)
    entry = _told(known, said, where) if known else _new(code, parts, said, where)
    same = [one for one in found.values() if (one.iso639_3, one.script) == (entry.iso639_3, entry.script)]
    if entry.code.lower() in found or (same and entry.iso639_3):
        raise UserError(where, f"{entry.code} stands here twice", "each language once", "remove one of them")
    found[entry.code.lower()] = entry


def _known_as(code: str) -> Language | None:
    try:
        return _find(code, ())
    except UserError:  # in another script alone
        return None


def _told(known: Language, said: Mapping[str, str], where: str) -> Language:
    """A language of the registry that NLLB lacks, with the tag of a near one, which is all that is to be said of it."""
    other = [
        name for name in ("name", "script") if said.get(name, getattr(known, name)) != getattr(known, name)
    ]
    if known.nllb or other or "nllb" not in said:
        tag = f", NLLB's {known.nllb}" if known.nllb else ", which NLLB lacks"
        raise UserError(
            where,
            f"is known already: {known.name} ({known.code}, {known.script}{tag})",
            "" if known.nllb else "`nllb` alone, the tag of a near language",
            "leave it out; a variety or another script of it has a code of its own, such as min-x-pariaman or sw-Arab",
        )
    return replace(known, near=_near(said["nllb"], where))


def _new(code: str, parts: re.Match[str], said: Mapping[str, str], where: str) -> Language:
    """A language that the registry does not have."""
    for name, what in (("name", "its English name"), ("script", "an ISO 15924 code, such as Latn")):
        if name not in said:
            raise UserError(where, f"has no `{name}`", what, "add it")
    _check_name(said["name"], where)
    _check_script(said["script"], where)
    if parts["script"] not in (None, said["script"]):
        found = f"the code {code} names the script {parts['script']}, and `script` is {said['script']}"
        raise UserError(where, found, "one script", "correct either")
    base = _known_as(code.split("-")[0])
    primary = base.iso639_3 if base else code.split("-")[0]
    iso = (
        "" if parts["more"] or len(primary) != 3 else primary
    )  # of a variety it would name the whole language
    near = _near(said["nllb"], where) if "nllb" in said else ""
    return Language(code, iso, said["name"], said["script"], "", (), near)


def _check_name(name: str, where: str) -> None:
    """A name stands in prompts, reports and model cards: letters, and what stands between them in names."""
    strange = [
        mark for mark in name if unicodedata.category(mark)[0] not in "LMN" and mark not in " -'’ʼ().,/"
    ]
    if strange or not name.strip() or len(name) > 80:
        found = f"the name {name[:80]!r} " + (f"holds {strange[0]!r}" if strange else "is blank or too long")
        raise UserError(where, found, "letters, digits, spaces and -'().,/, 80 at most", "write another name")


def _check_script(script: str, where: str) -> None:
    scripts = {entry.script for entry in _registry()}
    if script in scripts or (re.fullmatch("[A-Z][a-z]{3}", script) and _in_unicode(script)):
        return
    close = difflib.get_close_matches(script.title(), sorted(scripts), n=1, cutoff=0.5)
    mend = f"did you mean {close[0]}?" if close else "look it up at https://unicode.org/iso15924"
    raise UserError(
        where, f"the script {script[:80]!r} is not known", "an ISO 15924 code, such as Latn", mend
    )


def _in_unicode(script: str) -> bool:
    """Whether Unicode has letters of a script, by its ISO 15924 code."""
    import regex

    try:
        regex.compile(rf"\p{{Script={script}}}")
    except regex.error:
        return False
    return script not in ("Qaac", "Qaai", "Zinh", "Zyyy", "Zzzz")  # of old texts, shared by many, of none


def _near(tag: str, where: str) -> str:
    """NLLB's tag of a language that it has."""
    tags = {entry.nllb: entry for entry in _registry() if entry.nllb}
    if tag in tags:
        return tag
    known = _known_as(tag)
    close = [known.nllb] if known and known.nllb else difflib.get_close_matches(tag, tags, n=1, cutoff=0.8)
    mend = f"did you mean {close[0]}?" if close else "see `lingualift languages`."
    more = "leave it out: a tag of its own, as a model may be taught, is found without"
    raise UserError(
        where, f"the tag {tag[:80]!r} is none of NLLB's", "one such as ind_Latn", f"{mend} Or {more}"
    )
