from pathlib import Path

from trainer.files import fingerprint_of_folder


def test_a_base_is_known_by_its_files_whatever_their_dates(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(10_000_000))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("about it")
    before = fingerprint_of_folder(tmp_path)
    weights.touch()
    (tmp_path / "README.md").write_text("more")
    assert fingerprint_of_folder(tmp_path) == before
    weights.write_bytes(b"\1" * 10_000_000)
    trained_on = fingerprint_of_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"rope_theta": 2}')
    assert len({before, trained_on, fingerprint_of_folder(tmp_path)}) == 3
