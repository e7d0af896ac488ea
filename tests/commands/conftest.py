"""An adapter that a user trained without lingualift, and raw text in two languages."""

import warnings

import plain_peft
import pytest

from builders.worlds import small_data
from lingualift.miniworld import BACKBONE
from lingualift.miniworld.data import qa_rows, reference_rows


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """`en.txt`, `sw.txt`, `id.txt` of 60 lines each, and `data/` as `small_data` writes it."""
    folder = tmp_path_factory.mktemp("lifting")
    for code in ("en", "sw", "id"):
        lines = [row["text"] for row in reference_rows(code, 60)]
        (folder / f"{code}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    small_data(folder / "data")
    return folder


@pytest.fixture(scope="session")
def users(tmp_path_factory):
    """Makes a user's adapter: plain peft, an initialisation of its own."""
    made = {}

    def make(name="lora", **config):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("users") / name
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = {"seed": 7, "steps": 3, "batch": 8, "config": config}
                plain_peft.train(str(BACKBONE), qa_rows("en", "train", 48), "qa", made[name], **options)
        return made[name]

    return make
