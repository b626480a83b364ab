"""A program that writes into people's configuration changes what it was asked to and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import config_edit
from storage.errors import ConfigError

WRITTEN = """\
# Ours.
[model]
base = "auto"  # small

[trainer]   # at night
rank = 16   # was 8
cron = "0 4 * * *"  # a # in a text
objective = 'sft'
"""


def test_values_change_in_place_and_comments_stay() -> None:
    new = config_edit.change_values(WRITTEN, "trainer", {"rank": 32, "objective": "sft_kto", "epochs": 2})
    assert "rank = 32   # was 8\n" in new and 'objective = "sft_kto"\n' in new
    assert new.startswith('# Ours.\n[model]\nbase = "auto"  # small\n') and 'cron = "0 4 * * *"  # a #' in new
    assert tomllib.loads(new)["trainer"] == {
        "rank": 32,
        "cron": "0 4 * * *",
        "objective": "sft_kto",
        "epochs": 2,
    }


def test_a_section_that_is_missing_is_added_at_the_end() -> None:
    assert config_edit.change_values("", "trainer", {"rank": 8}) == "[trainer]\nrank = 8\n"
    new = config_edit.change_values("[model]\nbase = 'auto'", "trainer", {"sft_learning_rate": 3e-4})
    assert tomllib.loads(new) == {"model": {"base": "auto"}, "trainer": {"sft_learning_rate": 3e-4}}


@pytest.mark.parametrize(
    "text", ["trainer.rank = 8\n", "trainer = {rank = 8}\n", "[trainer]\nrank = [\n 8\n]\n", "[trainer\n"]
)
def test_what_it_cannot_change_is_left_and_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "strop.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        config_edit.write(path, "trainer", {"rank": 4})
    assert "TOML" in str(raised.value) or "write there: rank = 4" in str(raised.value)
    assert path.read_text(encoding="utf-8") == text


def test_of_several_sections_all_are_changed_or_none(tmp_path: Path) -> None:
    path = tmp_path / "strop.toml"
    path.write_text("model.base = 'auto'\n[trainer]\nrank = 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="write there: base"):
        config_edit.write_sections(path, {"trainer": {"rank": 4}, "model": {"base": "other"}})
    assert "rank = 8" in path.read_text(encoding="utf-8")
    path.write_text(WRITTEN, encoding="utf-8")
    config_edit.write_sections(path, {"trainer": {}, "model": {"base": "other"}})
    assert path.read_text(encoding="utf-8") == WRITTEN.replace('"auto"', '"other"')


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "strop.toml"
    path.write_text(WRITTEN, encoding="utf-8")
    path.chmod(0o600)
    config_edit.write(path, "trainer", {"rank": 4})
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]


values = st.one_of(st.integers(0, 99), st.floats(0, 1), st.booleans(), st.text("ab #\"'\\[]=", max_size=8))
tables = st.dictionaries(st.sampled_from(["rank", "epochs", "beta", "cron"]), values, max_size=4)


@given(tables, tables, st.booleans())
def test_whatever_was_there_the_rest_is_the_same(
    before: dict[str, object], new: dict[str, object], other: bool
) -> None:
    text = "".join(f"{key} = {config_edit._toml(value)} # why\n" for key, value in before.items())
    text = f"[trainer]\n{text}" + ("[gate]\nrank = 1\n" if other else "")
    found = config_edit.change_values(text, "trainer", new)
    assert tomllib.loads(found) == tomllib.loads(text) | {"trainer": {**before, **new}}
    assert found.count("# why") == len(before)
