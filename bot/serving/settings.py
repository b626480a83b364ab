"""The model server's slice of the configuration, as it arrives on standard input."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bot.serving.errors import ServerStartError


class Settings(BaseModel):
    """What ``storage.config`` passes on; every path is a folder that the server may create."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = "auto"
    revision: str = ""
    device: str = "auto"
    context_tokens: int = Field(default=2048, ge=64, le=1_000_000)
    slots: int = Field(default=8, ge=1, le=256)
    threads: int = Field(default=0, ge=0, le=1024)
    precision: Literal["fast", "exact"] = "fast"
    host: str = "127.0.0.1"
    port: int = Field(default=8601, ge=0, le=65535)
    api_key: str | None = None
    playground: bool = False
    engine: Literal["auto", "strop", "vllm"] = "auto"
    lora_rank: int = Field(default=16, ge=1, le=4096)
    models_dir: Path
    adapters_dir: Path
    run_dir: Path

    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_settings(text: str) -> Settings:
    """Parse the slice.

    Raises:
        ServerStartError: it is not valid, or it opens the server to others without an API key.
    """
    try:
        settings = Settings.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'input'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ServerStartError(f"The model server's settings are not valid: {problems}.") from error
    if not settings.is_loopback() and not settings.api_key:
        raise ServerStartError(
            f"[server] host is {settings.host}, which other machines can reach: set STROP_API_KEY, "
            "or bind to 127.0.0.1."
        )
    return settings
