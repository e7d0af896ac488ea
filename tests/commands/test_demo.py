"""The demo in a folder that holds something already."""

from builders.refusals import refused
from lingualift.commands.demo import run_demo


def test_an_edited_demo_is_the_users(tmp_path):
    (tmp_path / "demo.yaml").write_text("# mine\n")
    with refused("demo.yaml", "your own") as told:
        run_demo(tmp_path)
    assert f"lingualift run {tmp_path / 'demo.yaml'}" in told.value.mend
    assert list(tmp_path.iterdir()) == [tmp_path / "demo.yaml"]
    assert (tmp_path / "demo.yaml").read_text() == "# mine\n"
