"""Language registry: what a code in an experiment means.

`languages.tsv` holds the languages of FLORES-200 (NLLB's; https://arxiv.org/abs/2207.04672) and a few of NusaX and
NusaTranslation that NLLB lacks. Codes are BCP-47 (two letters where ISO 639-1 has them); ISO 639-3 codes, NLLB codes
and macro-language codes name the same languages.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from importlib import resources

from lingualift.errors import UserError


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
    """The language of a BCP-47, ISO 639-3 or NLLB code, in any letter case.

    Raises:
        UserError: no such language, with the closest codes and names.
    """
    index = _index()
    found = index.get(code.lower().replace("_", "-"))
    if found is None:
        names = {entry.name.lower(): entry.code for entry in all_languages()}
        close = difflib.get_close_matches(code.lower(), [*index, *names], n=1, cutoff=0.6)
        raise UserError(
            f"language {code!r}",
            "is not known",
            "a BCP-47, ISO 639-3 or NLLB code",
            f"did you mean {names.get(close[0], close[0])!r}?" if close else "see `lingualift languages`",
        )
    return found


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
