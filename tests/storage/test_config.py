from pathlib import Path

import pytest

from storage.config import Config, load_config
from storage.config_sections import ChatConfig
from storage.errors import ConfigError


def problems_of(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> list[str]:
    file = tmp_path / "strop.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, env or {})
    return caught.value.problems


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config(tmp_path / "strop.toml", {"STROP_HOME": str(tmp_path)})
    assert config.trainer.min_liked == 25
    assert config.gate.confidence == 0.95
    assert config.playground_page.port == 8600


def test_without_a_token_it_is_the_playground_with_data_of_its_own(tmp_path: Path) -> None:
    env = {"STROP_HOME": str(tmp_path)}
    rehearsal = load_config(tmp_path / "strop.toml", env)
    real = load_config(tmp_path / "strop.toml", {**env, "DISCORD_TOKEN": "abc"})
    assert rehearsal.playground
    assert rehearsal.database == tmp_path / "playground" / "strop.db"
    assert not real.playground
    assert real.database == tmp_path / "strop.db"
    assert rehearsal.models == real.models == tmp_path / "models"


def test_all_problems_are_reported_at_once_by_dotted_key_with_the_fix(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """
        [trainer]
        min_liked = "x"
        min_likd = 3
        objective = "magic"
        [discord]
        shards = 0
        operators = "me"
        [modle]
        [playground]
        host = "0.0.0.0"
        """,
        {"DISCORD_TOKEN_FILE": str(tmp_path / "nowhere")},
    )
    assert "trainer.min_liked: must be a positive integer; got 'x'" in found
    assert "trainer.min_likd: unknown key; did you mean 'min_liked'?" in found
    assert (
        'trainer.objective: must be one of "auto", "sft", "sft_kto", "sft_dpo", "sft_kto_dpo", "sft_ranked"; '
        "got 'magic'" in found
    )
    assert "discord.shards: must be a positive integer; got 0" in found
    assert any(line.startswith("discord.operators: must be a list of Discord ids") for line in found)
    assert "modle: unknown key; did you mean 'model'?" in found
    assert any(line.startswith("DISCORD_TOKEN_FILE: ") and "No such file" in line for line in found)
    assert any(line.startswith("playground.host: must be this machine") for line in found)
    assert len(found) == 8


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "[model]\nmin_raters = 2") == [
        "model.min_raters: unknown key; did you mean trainer.min_raters?"
    ]


def test_a_value_where_a_section_belongs_is_explained(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "trainer = 3") == ["trainer: must be a table, written as [trainer]; got 3"]


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "[chat]\ntop_p = = 3")
    assert "not valid TOML" in problem
    assert "line 2" in problem


def test_a_token_in_the_file_is_refused_and_never_echoed(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[discord]\ntoken = "s3cret"')
    assert problem.startswith("discord.token: does not belong in the file; set DISCORD_TOKEN")
    assert "s3cret" not in problem


def test_a_secret_never_shows_in_the_configuration(tmp_path: Path) -> None:
    config = load_config(tmp_path / "strop.toml", {"DISCORD_TOKEN": "s3cret", "STROP_API_KEY": "k3y"})
    assert "s3cret" not in repr(config) + str(config.model_dump())
    assert "k3y" not in repr(config)


def test_the_token_is_read_from_a_secret_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    config = load_config(tmp_path / "strop.toml", {"DISCORD_TOKEN_FILE": str(file)})
    assert config.discord.token is not None
    assert config.discord.token.get_secret_value() == "from-file"


def test_an_empty_secret_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    (problem,) = problems_of(tmp_path, "", {"DISCORD_TOKEN_FILE": str(tmp_path / "token")})
    assert "is empty" in problem


def test_a_named_file_that_is_missing_is_a_problem_but_strop_toml_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "other.toml", {})
    assert isinstance(load_config(tmp_path / "strop.toml", {}), Config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[server]\nhost = "0.0.0.0"', "server.host: '0.0.0.0' is reachable from outside; set STROP_API_KEY"),
        ('[server]\nbase_url = "localhost:1"', "server.base_url: must start with http"),
        ('[server]\nmodel = "llama3.2"', "server.model: names a model of the server at server.base_url"),
        (
            "[chat]\ncontext_tokens = 5000",
            "chat.context_tokens: must not be larger than model.context_tokens",
        ),
        ('[trainer]\ncron = "4am"', "trainer.cron: '4am' can't be used: it must have five fields"),
        ('[trainer]\ncron = "0 25 * * *"', "trainer.cron: '0 25 * * *' can't be used: '25' is no hour"),
        (
            '[trainer]\ncron = "0 4 31 2 *"\ninterval_hours = 0.0',
            "trainer.cron: '0 4 31 2 *' can't be used: it is never due: February never has 31 days",
        ),
        (
            '[trainer]\ntime_zone = "Europe/Berln"',
            "trainer.time_zone: 'Europe/Berln' is no time zone; did you mean 'Europe/Berlin'?",
        ),
        (
            "[discord]\nshards = 2\nprocesses = 3",
            "discord.processes: must not be larger than discord.shards (2); got 3",
        ),
        (
            "[discord]\nshards = 2\nprocesses = 2\n[metrics]\nport = 9000\n[server]\nport = 9001",
            "metrics.port: must not be server.port as well; got 9001",
        ),
        (
            "[trainer]\nparallel_runs = 2\nserver_sleeps = true",
            "trainer.parallel_runs: must be 1 where trainer.server_sleeps gives a run the GPU; got 2",
        ),
        ('[discord]\nrating_up = ["👎"]', "discord.rating_down: 👎 cannot mean both"),
        ("[discord]\nrating_up = []", "discord.rating_up: must name at least one emoji"),
        (
            '[discord]\ntraining_permission_reference = "T-1"',
            "discord.training_permission_date: must say when",
        ),
        (
            '[discord]\ntraining_permission_date = "2026-01-31"',
            "discord.training_permission_reference: must name",
        ),
        (
            '[discord]\ntraining_permission_reference = "T"\ntraining_permission_date = "soon"',
            "discord.training_permission_date: must be a date",
        ),
        ("[trainer]\nreplay_share = 1.5", "trainer.replay_share: must be a number from 0 to 1; got 1.5"),
        ("[trainer]\nrank = true", "trainer.rank: must be a positive integer; got True"),
        ("[trainer]\nnice = 20", "trainer.nice: must be an integer from 0 to 19; got 20"),
        ("[server]\nport = 99999", "server.port: must be a port from 0"),
        ('[model]\ndevice = "tpu"', "model.device: must be"),
    ],
)
def test_what_cannot_work_together_is_said_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = problems_of(tmp_path, text)
    assert found.startswith(problem)


def test_whole_numbers_do_for_amounts(tmp_path: Path) -> None:
    file = tmp_path / "strop.toml"
    file.write_text("[trainer]\ninterval_hours = 6\n")
    assert load_config(file, {}).trainer.interval_hours == 6.0


def test_the_model_server_gets_its_slice_and_nothing_of_discord(tmp_path: Path) -> None:
    env = {"STROP_HOME": str(tmp_path), "DISCORD_TOKEN": "s3cret", "STROP_API_KEY": "k3y"}
    passed = load_config(tmp_path / "strop.toml", env).server_slice()
    assert set(passed) == {
        *("base", "revision", "device", "context_tokens", "slots", "threads", "precision"),
        *("playground", "host", "port", "engine", "lora_rank", "api_key"),
        *("models_dir", "adapters_dir", "run_dir"),
    }
    assert passed["api_key"] == "k3y"
    assert "s3cret" not in str(passed)


def test_the_chat_has_keys_for_all_that_chooses_a_token(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[chat]\nmin_p = 0.2\nrepetition_penalty = 1.3\n")
    assert load_config(tmp_path / "strop.toml", {}).chat.sampling == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.2,
        "repetition_penalty": 1.3,
    }
    (tmp_path / "strop.toml").write_text("[chat]\nrepetition_penalty = 0.5\n")
    with pytest.raises(ConfigError, match=r"chat\.repetition_penalty: must be a number from 1 to 2"):
        load_config(tmp_path / "strop.toml", {})


def test_the_penalty_follows_the_base_unless_it_is_set() -> None:
    """Small bases run in loops without one; what a server elsewhere has is not known."""
    unset, off, own = ChatConfig(), ChatConfig(repetition_penalty=1.0), ChatConfig(repetition_penalty=1.2)
    sizes = (135_000_000, 999_999_999, 1_700_000_000, 0)
    assert [unset.for_base(size).sampling["repetition_penalty"] for size in sizes] == [1.1, 1.1, 1.0, 1.0]
    assert {off.for_base(size).sampling["repetition_penalty"] for size in sizes} == {1.0}
    assert {own.for_base(size).sampling["repetition_penalty"] for size in sizes} == {1.2}
    assert unset.sampling["repetition_penalty"] == 1.0


def test_the_file_takes_no_temperature_that_the_settings_refuse(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[chat]\ntemperature = 5.0\n")
    with pytest.raises(ConfigError, match=r"chat\.temperature: must be a number from 0 to 2; got 5\.0"):
        load_config(tmp_path / "strop.toml", {})
