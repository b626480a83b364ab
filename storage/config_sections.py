"""The sections of strop.toml as frozen models, with their defaults and what each key must be."""

import ipaddress
from typing import Annotated, Literal, Self, TypedDict
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, Strict

PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")

Text = Annotated[str, Field(description="a text in quotes")]
Count = Annotated[int, Strict(), Field(gt=0, description="a positive integer")]
Flag = Annotated[bool, Strict(), Field(description="true or false")]
Whole = Annotated[int, Strict(), Field(ge=0, description="zero or a positive integer")]
Positive = Annotated[float, Strict(), Field(gt=0, description="a positive number")]
Amount = Annotated[float, Strict(), Field(ge=0, description="zero or a positive number")]
Temperature = Annotated[float, Strict(), Field(ge=0, le=2, description="a number from 0 to 2")]


def _zero_or_penalty(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("it would favour repetition")
    return value


Penalty = Annotated[
    float,
    Strict(),
    Field(ge=0, le=2, description="a number from 1 to 2, or 0 (by the size of the base)"),
    AfterValidator(_zero_or_penalty),
]
Share = Annotated[float, Strict(), Field(ge=0, le=1, description="a number from 0 to 1")]
Inside = Annotated[float, Strict(), Field(gt=0, lt=1, description="a number between 0 and 1")]
Port = Annotated[int, Strict(), Field(ge=0, le=65535, description="a port from 0 (any free one) to 65535")]
Nice = Annotated[int, Strict(), Field(ge=0, le=19, description="an integer from 0 to 19")]
Ids = Annotated[
    tuple[Annotated[int, Field(gt=0)], ...],
    Field(description="a list of Discord ids, for example [123456789012345678]"),
]
Emojis = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(description='a list of emojis, for example ["👍"]')
]


class Section(BaseModel):
    """What every section has in common: values never change, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DiscordConfig(Section):
    """What the bot does on Discord. The token comes from the environment only."""

    token: SecretStr | None = None
    operators: Ids = ()
    channels: Ids = ()
    message_content: Flag = False
    rating_up: Emojis = ("👍",)
    rating_down: Emojis = ("👎",)
    training_permission_reference: Text = ""
    training_permission_date: Text = ""
    shards: Count = 1
    processes: Count = 1
    operators_channel: Whole = 0


# Bases with fewer parameters run in loops without a penalty, as was measured with 135M (EXPERIMENTS, 23).
# Larger ones hardly loop, and a penalty costs them what has to be said twice, code above all.
LOOPING_PARAMETERS = 1_000_000_000
LOOPING_PENALTY = 1.1


class SamplingKeys(TypedDict):
    """The keys of `chat` that choose a token."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class ChatConfig(Section):
    """How a reply is asked for. The sampling's defaults were measured (tests/bench/sampling.py).

    A `repetition_penalty` of 0 follows the size of the base: `for_base` says what is in force.
    """

    system_prompt: Text = "You are a friendly member of this community. Answer briefly."
    max_new_tokens: Count = 120
    temperature: Temperature = 0.7
    top_p: Share = 0.9
    top_k: Whole = 0
    min_p: Share = 0.1
    repetition_penalty: Penalty = 0.0
    context_tokens: Count = 1024

    def for_base(self, parameters: int) -> Self:
        """Return what is in force with a base of so many parameters; 0: another server's, of unknown size.

        There a penalty would fall on the end tokens too, which ours spares, and lengthen replies.
        """
        if self.repetition_penalty:
            return self
        loops = 0 < parameters < LOOPING_PARAMETERS
        return self.model_copy(update={"repetition_penalty": LOOPING_PENALTY if loops else 1.0})

    @property
    def sampling(self) -> SamplingKeys:
        """How a token is chosen, for whoever asks as the chat does."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty or 1.0,
        }


class RepliesConfig(Section):
    """What stands under a reply, and how it is rated apart from reactions.

    `compare` is the share of questions that get two candidates side by side; `compare_not_in` names servers
    and channels that never do.
    """

    buttons: Annotated[
        tuple[Literal["regenerate", "stop", "better", "why"], ...],
        Field(description='a list out of "regenerate", "stop", "better", "why"; [] for no buttons'),
    ] = ("regenerate", "stop", "better", "why")
    rating_buttons: Annotated[bool, Strict(), Field(description="true or false")] = False
    most_versions: Count = 10
    compare: Share = 0.0
    compare_not_in: Ids = ()


class ModelConfig(Section):
    """The base model and how it is run. `threads` 0 means that the server decides."""

    base: Text = "auto"
    revision: Text = ""
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:0"'),
    ] = "auto"
    context_tokens: Count = 2048
    slots: Count = 8
    threads: Whole = 0
    precision: Annotated[Literal["fast", "exact"], Field(description='"fast" or "exact"')] = "fast"


class ServerConfig(Section):
    """Where the model server listens, or which OpenAI-compatible server to use instead (`base_url`)."""

    engine: Annotated[Literal["auto", "strop", "vllm"], Field(description='"auto", "strop" or "vllm"')] = (
        "auto"
    )
    host: Text = "127.0.0.1"
    port: Port = 8601
    base_url: Text = ""
    model: Text = ""
    api_key: SecretStr | None = None

    @property
    def key(self) -> str | None:
        """The API key as it is sent."""
        return self.api_key.get_secret_value() if self.api_key else None


class TrainerConfig(Section):
    """When and how a challenger is trained; an empty `cron` or a 0 switches a trigger off.

    Learning rates and epochs of 0 follow the size of the base and what is trained. `gpu_memory_share` is of
    the whole card, base included.
    """

    cron: Text = ""
    time_zone: Text = "UTC"
    interval_hours: Amount = 24.0
    min_new_ratings: Whole = 50
    min_liked: Count = 25
    min_raters: Count = 5
    objective: Annotated[
        Literal["auto", "sft", "sft_kto", "sft_dpo", "sft_kto_dpo", "sft_ranked"],
        Field(description='one of "auto", "sft", "sft_kto", "sft_dpo", "sft_kto_dpo", "sft_ranked"'),
    ] = "auto"
    scope: Annotated[Literal["guild", "deployment"], Field(description='"guild" or "deployment"')] = "guild"
    rank: Count = 16
    alpha: Count = 32
    sft_learning_rate: Amount = 0.0
    kto_learning_rate: Amount = 0.0
    dpo_learning_rate: Amount = 0.0
    epochs: Whole = 0
    kto_epochs: Count = 1
    dpo_epochs: Count = 1
    dpo_sft_weight: Amount = 0.3
    ranked_rounds: Whole = 2
    ranked_replies: Count = 384
    signals: Flag = True
    judge_hidden_states: Flag = False
    beta: Positive = 0.1
    batch_size: Count = 8
    dpo_batch_size: Count = 4
    sft_batch_size: Count = 4
    batch_tokens: Whole = 0
    max_length: Count = 512
    replay_share: Share = 0.3
    max_train_minutes: Positive = 5.0
    checkpoint_seconds: Positive = 60.0
    seed: Whole = 0
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:0"'),
    ] = "auto"
    gpu_memory_share: Annotated[float, Field(gt=0, le=1, description="a share above 0, up to 1")] = 1.0
    server_sleeps: bool = False
    nice: Nice = 19
    parallel_runs: Count = 1
    keep_refused_days: Amount = 90.0
    where: Annotated[Literal["local", "ray"], Field(description='"local" or "ray"')] = "local"
    ray_address: Text = "auto"
    ray_workers: Count = 1
    ray_worker_cpus: Positive = 1.0
    ray_worker_gpus: Amount = 0.0
    ray_models: Text = "~/.cache/strop/models"

    @property
    def interval_in_force(self) -> float:
        """The interval in hours; a cron line takes the place of the default one, not of one that is set."""
        replaced = self.cron and "interval_hours" not in self.model_fields_set
        return 0.0 if replaced else self.interval_hours


class GateConfig(Section):
    """What a challenger has to prove. A share of 0 does without canaries, or without holdbacks.

    `canary_not_in` names servers and channels that the champion answers alone.
    """

    policy: Annotated[
        Literal["auto", "ask", "canary-first"], Field(description='one of "auto", "ask", "canary-first"')
    ] = "auto"
    min_effect: Amount = 0.02
    generation_minutes: Positive = 3.0
    max_prompts: Count = 64
    replies_per_prompt: Count = 1
    max_new_tokens: Count = 60
    bootstrap: Count = 2000
    confidence: Inside = 0.95
    max_general_nll_increase: Positive = 0.05
    max_kl: Positive = 0.8
    evote_alpha: Inside = 0.05
    min_votes: Count = 10
    canary_share: Share = 0.1
    canary_days: Positive = 14.0
    canary_most_ratings: Count = 200
    canary_not_in: Ids = ()
    holdback_share: Share = 0.05
    holdback_days: Positive = 7.0


class NetworkConfig(Section):
    """The way out of this machine: a proxy, and the hosts that are reached without it.

    Empty: HTTPS_PROXY and NO_PROXY of the environment.
    """

    proxy: Text = ""
    no_proxy: Text = ""

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy for an address; None for this machine and for what `no_proxy` names."""
        host = urlsplit(url).hostname or ""
        named = [each.strip().lstrip("*.").lower() for each in self.no_proxy.split(",")]
        direct = is_loopback(host) or self.no_proxy.strip() == "*"
        direct |= any(each and (host == each or host.endswith(f".{each}")) for each in named)
        return None if direct else self.proxy or None

    def environment(self) -> dict[str, str]:
        """Return the variables by which programs that know no strop.toml find the proxy."""
        if not self.proxy:
            return {}
        hosts = ",".join(dict.fromkeys(["localhost", "127.0.0.1", "::1", *self.no_proxy.split(",")])).strip(
            ","
        )
        names = {"HTTPS_PROXY": self.proxy, "HTTP_PROXY": self.proxy, "NO_PROXY": hosts}
        return {**names, **{name.lower(): value for name, value in names.items()}}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AlertsConfig(Section):
    """The address that gets the operators' alerts as JSON; empty: none. Whoever knows it can write there."""

    webhook: Annotated[SecretStr, Field(description="an address in quotes")] = SecretStr("")


class MetricsConfig(Section):
    """Where the bot answers Prometheus; a `port` of 0 leaves it off."""

    host: Text = "127.0.0.1"
    port: Annotated[
        int, Strict(), Field(ge=0, le=65535, description="a port from 1 to 65535, or 0 for none")
    ] = 0


class PlaygroundConfig(Section):
    """Where the playground's page listens; on this machine only."""

    host: Text = "127.0.0.1"
    port: Port = 8600
