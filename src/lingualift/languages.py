"""Language registry: what a code in an experiment means.

`languages.tsv` holds the languages of FLORES-200 (NLLB's; https://arxiv.org/abs/2207.04672) and a few of NusaX and
NusaTranslation that NLLB lacks. Codes are BCP-47 (two letters where ISO 639-1 has them); ISO 639-3 codes, NLLB codes,
M2M100's codes and macro-language codes name the same languages. A script or region may follow (`zh-Hans`, `sw-KE`,
`pt_BR`): the language is the same one where it is written so (Unicode CLDR's likely subtags), and else refused.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from importlib import resources

from lingualift.errors import UserError

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
        iso639_3: ISO 639-3 code.
        name: English name.
        script: ISO 15924 code of the script.
        nllb: NLLB's code, or "" where NLLB does not have the language.
        aliases: Further codes that mean this language.
    """

    code: str
    iso639_3: str
    name: str
    script: str
    nllb: str
    aliases: tuple[str, ...] = ()


def language(code: str) -> Language:
    """The language of a BCP-47, ISO 639-3 or NLLB code, in any letter case, with or without a script and a region.

    Raises:
        UserError: no such language, with the closest codes and names; or it is not known in that script.
    """
    index = _index()
    tag = code.lower().replace("_", "-")
    found = index.get(tag) or _of_tag(code, tag)
    if found is None:
        names = {entry.name.lower(): entry.code for entry in all_languages()}
        first, *rest = tag.split("-")
        if rest:
            close = [first] if first in index else []
        else:
            close = difflib.get_close_matches(tag, [*index, *names], n=1, cutoff=0.6)
        raise UserError(
            f"language {code!r}",
            "is not known",
            "a BCP-47, ISO 639-3 or NLLB code",
            f"did you mean {names.get(close[0], close[0])!r}?" if close else "see `lingualift languages`",
        )
    return found


def _of_tag(code: str, tag: str) -> Language | None:
    """The language of a tag with a script or region, in the script that it names or that is written there."""
    parts = _TAG.fullmatch(tag)
    known = _index().get(parts["primary"]) if parts else None
    if parts is None or known is None:
        return None
    region = (parts["region"] or "").upper()
    if region.isalpha() and region not in _REGIONS.split():
        return None
    elsewhere = _WRITTEN_ELSEWHERE.get(known.code, {}).items()
    there = (script for script, regions in elsewhere if region in regions.split())
    script = parts["script"].title() if parts["script"] else next(there, known.script)
    scripts = {entry.script: entry for entry in all_languages() if entry.iso639_3 == known.iso639_3}
    if script not in scripts:
        raise UserError(
            f"language {code!r}",
            f"is {known.name} in the script {script}, which is not known",
            " or ".join(f"{entry.code} ({entry.script})" for entry in scripts.values()),
        )
    return scripts[script]


@functools.cache
def all_languages() -> tuple[Language, ...]:
    """Every language of the registry, sorted by code."""
    table = (
        resources.files("lingualift").joinpath("languages.tsv").read_text(encoding="utf-8").splitlines()[1:]
    )
    rows = (line.split("\t") for line in table)
    return tuple(
        Language(code, iso, name, script, nllb, tuple(aliases.split()))
        for code, iso, aliases, name, script, nllb in rows
    )


@functools.cache
def _index() -> dict[str, Language]:
    index: dict[str, Language] = {}
    for entry in all_languages():
        index.setdefault(entry.code.lower(), entry)
    for entry in all_languages():  # codes of the registry's own win over other names of another entry
        for name in (*entry.aliases, entry.iso639_3, entry.nllb.replace("_", "-")):
            if name:
                index.setdefault(name.lower(), entry)
    return index
