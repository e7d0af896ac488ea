"""How much memory a container leaves."""

from lingualift.processes import _free_in_container


def test_files_in_memory_count_as_free(tmp_path):
    assert _free_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text(
        "anon 300\nfile 600\nactive_file 100\ninactive_file 450\nslab_reclaimable 20\n"
    )
    assert _free_in_container(tmp_path) == 670
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_container(tmp_path) is None
