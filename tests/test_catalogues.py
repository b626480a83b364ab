import shutil
from pathlib import Path

import pytest

from bot.language.texts import FOLDER
from tests import catalogues


def test_every_key_of_the_catalogues_is_in_the_sources(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing changes, to the byte, where nothing was reworded."""
    folder = tmp_path / "catalogues"
    shutil.copytree(FOLDER, folder)
    assert catalogues.main(folder) == 0
    assert all(path.read_bytes() == (FOLDER / path.name).read_bytes() for path in folder.iterdir())
    assert capsys.readouterr().out == ""


def test_a_reworded_sentence_keeps_its_translations(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "catalogues"
    shutil.copytree(FOLDER, folder)
    now, before = "Only the person who was asked can answer this.", "Only who was asked can answer this."
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert now in text
        path.write_text(text.replace(now, before), encoding="utf-8")
    assert catalogues.main(folder) == 0
    assert all(path.read_bytes() == (FOLDER / path.name).read_bytes() for path in folder.iterdir())
    assert capsys.readouterr().out.count("is now") == 4


def test_a_key_that_nothing_is_like_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "xx.po").write_text(
        'msgid "{count} zebras graze beside an old mill"\nmsgstr "Zebre"\n', encoding="utf-8"
    )
    assert catalogues.main(tmp_path) == 1
    assert "in no source" in capsys.readouterr().out


def test_only_a_sentence_with_the_same_places_takes_a_key() -> None:
    assert catalogues.renamed(["{count} were there."], {"{count} were here.", "{n} were there."}) == {
        "{count} were there.": "{count} were here."
    }
