"""strop.toml and the environment, read once per process into frozen models.

Every problem is reported at once, by dotted key and with what to do about it.
"""

import datetime
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from storage.config_sections import (
    PROXY_VARIABLES,
    AlertsConfig,
    ChatConfig,
    DiscordConfig,
    GateConfig,
    MetricsConfig,
    ModelConfig,
    NetworkConfig,
    PlaygroundConfig,
    RepliesConfig,
    Section,
    ServerConfig,
    TrainerConfig,
    is_loopback,
)
from storage.config_text import bare_secret, bare_token, decode
from storage.cron import EXAMPLE_LINE, CronLine, time_zone
from storage.errors import ConfigError, CronError

DEFAULT_FILE = Path("strop.toml")


class Config(Section):
    """The whole configuration of one process; each component is handed its own section."""

    home: Path
    discord: DiscordConfig = DiscordConfig()
    chat: ChatConfig = ChatConfig()
    replies: RepliesConfig = RepliesConfig()
    model: ModelConfig = ModelConfig()
    server: ServerConfig = ServerConfig()
    trainer: TrainerConfig = TrainerConfig()
    gate: GateConfig = GateConfig()
    network: NetworkConfig = NetworkConfig()
    metrics: MetricsConfig = MetricsConfig()
    alerts: AlertsConfig = AlertsConfig()
    playground_page: PlaygroundConfig = Field(default=PlaygroundConfig(), alias="playground")

    @property
    def playground(self) -> bool:
        """Whether this is the playground: there is no Discord token."""
        return self.discord.token is None

    @property
    def data(self) -> Path:
        """The folder of the database, adapters and runs; rehearsals have one of their own."""
        return self.home / "playground" if self.playground else self.home

    @property
    def server_proxy(self) -> str | None:
        """The proxy on the way to somebody else's model server."""
        return self.network.proxy_for(self.server.base_url) if self.server.base_url else None

    @property
    def models(self) -> Path:
        """The folder of base models, shared with the playground."""
        return self.home / "models"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "strop.db"

    @property
    def adapters(self) -> Path:
        """The folder of adapters, one folder for each id."""
        return self.data / "adapters"

    @property
    def runs(self) -> Path:
        """The folder of training runs, one folder for each id."""
        return self.data / "runs"

    @property
    def backups(self) -> Path:
        """The folder of backups."""
        return self.data / "backups"

    @property
    def run(self) -> Path:
        """The folder of process files (addresses and secrets of running servers)."""
        return self.data / "run"

    def server_slice(self) -> dict[str, Any]:
        """Return what the model server reads from its standard input, as plain JSON values."""
        key = self.server.api_key
        return {
            "base": self.model.base,
            "revision": self.model.revision,
            "device": self.model.device,
            "context_tokens": self.model.context_tokens,
            "slots": self.model.slots,
            "threads": self.model.threads,
            "precision": self.model.precision,
            "host": self.server.host,
            "port": self.server.port,
            "playground": self.playground,
            "engine": self.server.engine,
            "lora_rank": self.trainer.rank,
            "api_key": key.get_secret_value() if key else None,
            "models_dir": str(self.models),
            "adapters_dir": str(self.adapters),
            "run_dir": str(self.run),
        }


def load_config(path: Path | None, env: Mapping[str, str]) -> Config:
    """Read `path` (default: strop.toml, if there is one) and the environment.

    Raises ConfigError with one line for each problem.
    """
    problems: list[str] = []
    table = _read_file(path, problems)
    _refuse_secrets(table, problems)
    _add_environment(table, env, problems)
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors()]
        config = Config.model_validate(_without_faults(table, error))
    problems += _contradictions(config)
    if problems:
        raise ConfigError(problems)
    return config


def _read_file(path: Path | None, problems: list[str]) -> dict[str, Any]:
    path = path or DEFAULT_FILE
    try:
        return tomllib.loads(decode(path.read_bytes()).replace("\r\n", "\n"))
    except FileNotFoundError:
        if path.name != DEFAULT_FILE.name:
            problems.append(f"{path}: there is no such file; check --config, or run `strop init`")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: not valid TOML: {error}")
    except UnicodeDecodeError:
        problems.append(f"{path}: not UTF-8 text; save it as UTF-8")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
    return {}


def _refuse_secrets(table: dict[str, Any], problems: list[str]) -> None:
    """Secrets do not belong in a file that people share; they are never echoed either."""
    for section, key, instead in (
        ("discord", "token", "DISCORD_TOKEN or DISCORD_TOKEN_FILE"),
        ("server", "api_key", "STROP_API_KEY"),
    ):
        if isinstance(table.get(section), dict) and key in table[section]:
            del table[section][key]
            problems.append(f"{section}.{key}: does not belong in the file; set {instead} in the environment")
    if table.pop("home", None) is not None:
        problems.append("home: does not belong in the file; set STROP_HOME in the environment")


def _add_environment(table: dict[str, Any], env: Mapping[str, str], problems: list[str]) -> None:
    # Absolute and without "..": every path of a deployment is derived from it, and a child process or a later
    # change of the working directory must not give the same file a second name.
    table["home"] = Path(bare_secret(env.get("STROP_HOME", "")) or "data").expanduser().resolve()
    secrets = {
        ("discord", "token"): _token(env, problems),
        ("server", "api_key"): env.get("STROP_API_KEY"),
        ("alerts", "webhook"): env.get("STROP_ALERTS_WEBHOOK"),
    }
    for (section, key), secret in secrets.items():
        if secret and isinstance(table.setdefault(section, {}), dict):
            table[section][key] = SecretStr(bare_secret(secret))
    network = table.setdefault("network", {})
    if isinstance(network, dict):
        for key, names in (("proxy", PROXY_VARIABLES), ("no_proxy", ("NO_PROXY", "no_proxy"))):
            found = next((env[name] for name in names if env.get(name)), "")
            network.setdefault(key, found)
        proxy = network["proxy"]
        if isinstance(proxy, str) and proxy and "://" not in proxy:
            network["proxy"] = f"http://{proxy}"  # as curl reads it


def _token(env: Mapping[str, str], problems: list[str]) -> str | None:
    file = bare_secret(env.get("DISCORD_TOKEN_FILE", ""))
    token = bare_token(env.get("DISCORD_TOKEN", ""))
    if token or not file:
        return token or None
    try:
        token = bare_token(decode(Path(file).expanduser().read_bytes()))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        problems.append(
            f"DISCORD_TOKEN_FILE: {file} cannot be read ({reason}); fix the path or its permissions"
        )
        return None
    if not token:
        problems.append(f"DISCORD_TOKEN_FILE: {file} is empty; put the bot's token in it")
    return token or None


def _without_faults(table: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """Return the table with defaults where it was wrong, so that the rest can be checked as well."""
    for detail in error.errors():
        section, *rest = detail["loc"][:2]
        if rest and isinstance(table.get(str(section)), dict):
            table[str(section)].pop(str(rest[0]), None)
        else:
            table.pop(str(section), None)
    return table


def _explain(detail: ErrorDetails) -> str:
    """Say what is wrong with one key, and what it must be."""
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_did_you_mean(location)}"
    section = _sections().get(location[0])
    if section is None or len(location) == 1:
        return f"{key}: must be a table, written as [{key}]; got {detail['input']!r}"
    wanted = section.model_fields[location[1]].description
    return f"{'.'.join(location[:2])}: must be {wanted}; got {detail['input']!r}"


def _did_you_mean(location: list[str]) -> str:
    if len(location) == 1:
        return _suggestion(location[0], list(_sections()), "; the sections are ")
    fields = [name for name in _sections()[location[0]].model_fields if name not in ("token", "api_key")]
    elsewhere = [
        f"{name}.{location[-1]}" for name, model in _sections().items() if location[-1] in model.model_fields
    ]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return _suggestion(location[-1], fields, f"; [{location[0]}] has ")


def _suggestion(word: str, known: list[str], otherwise: str) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise + ", ".join(known)


def _sections() -> dict[str, type[BaseModel]]:
    return {
        field.alias or name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _contradictions(config: Config) -> Iterator[str]:
    """Problems that need more than one key to see."""
    host = config.playground_page.host
    if not is_loopback(host):
        yield f"playground.host: must be this machine (127.0.0.1, ::1 or localhost); got {host!r}"
    host = config.server.host
    if not is_loopback(host) and config.server.api_key is None:
        yield f"server.host: {host!r} is reachable from outside; set STROP_API_KEY, or use 127.0.0.1"
    if config.server.base_url and not config.server.base_url.startswith(("http://", "https://")):
        yield f"server.base_url: must start with http:// or https://; got {config.server.base_url!r}"
    if config.server.model and not config.server.base_url:
        yield "server.model: names a model of the server at server.base_url, which is empty; set model.base"
    if config.chat.context_tokens > config.model.context_tokens:
        limit, got = config.model.context_tokens, config.chat.context_tokens
        yield f"chat.context_tokens: must not be larger than model.context_tokens ({limit}); got {got}"
    if config.gate.policy == "canary-first" and not config.gate.canary_share:
        yield 'gate.canary_share: must be above 0, because gate.policy is "canary-first"; got 0.0'
    # Its password, if it has one, must not be echoed.
    if config.network.proxy and not config.network.proxy.startswith(("http://", "https://")):
        yield "network.proxy: must start with http:// or https://; other kinds of proxy can't be used"
    webhook = config.alerts.webhook.get_secret_value()
    if webhook and not webhook.startswith(("http://", "https://")):
        yield "alerts.webhook: must start with http:// or https:// (what it is isn't shown: it is a secret)"
    if config.discord.processes > config.discord.shards:
        limit, got = config.discord.shards, config.discord.processes
        yield f"discord.processes: must not be larger than discord.shards ({limit}); got {got}"
    for section, port in (("server", config.server.port), ("playground", config.playground_page.port)):
        first = config.metrics.port
        if first and first <= port < first + config.discord.processes:
            yield f"metrics.port: must not be {section}.port as well; got {port}"
    if config.trainer.parallel_runs > 1 and config.trainer.server_sleeps and not config.server.base_url:
        got = config.trainer.parallel_runs
        yield f"trainer.parallel_runs: must be 1 where trainer.server_sleeps gives a run the GPU; got {got}"
    yield from _time_problems(config.trainer)
    yield from _emoji_problems(config.discord)
    yield from _permission_problems(config.discord)


def _time_problems(trainer: TrainerConfig) -> Iterator[str]:
    try:
        time_zone(trainer.time_zone)
    except CronError as error:
        yield f"trainer.time_zone: {trainer.time_zone!r} is no time zone; {error}"
    try:
        CronLine.parse(trainer.cron or EXAMPLE_LINE)
    except CronError as error:
        yield f"trainer.cron: {trainer.cron!r} can't be used: {error}"


def _emoji_problems(discord: DiscordConfig) -> Iterator[str]:
    both = set(discord.rating_up) & set(discord.rating_down)
    if both:
        yield f"discord.rating_down: {' '.join(sorted(both))} cannot mean both a like and a dislike"
    for key in ("rating_up", "rating_down"):
        if not getattr(discord, key):
            yield f"discord.{key}: must name at least one emoji"


def _permission_problems(discord: DiscordConfig) -> Iterator[str]:
    reference, date = discord.training_permission_reference, discord.training_permission_date
    if reference and not date:
        yield "discord.training_permission_date: must say when Discord gave it, for example 2026-01-31"
    if date and not reference:
        yield "discord.training_permission_reference: must name Discord's permission that the date belongs to"
    try:
        datetime.date.fromisoformat(date or "2026-01-31")
    except ValueError:
        yield f"discord.training_permission_date: must be a date like 2026-01-31; got {date!r}"
