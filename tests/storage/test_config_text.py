"""Files and secrets as people save and paste them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.config import load_config
from storage.config_text import bare_token, decode
from storage.errors import ConfigError

TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GaBcDe.abcdefghijklmnopqrstuvwxyz0123456789AB"


@pytest.mark.parametrize(
    "pasted",
    [
        TOKEN,
        f'"{TOKEN}"',
        f"'{TOKEN}'\n",
        f"\u201c{TOKEN}\u201d",
        f"Bot {TOKEN}",
        f'"Bot {TOKEN}"',
        f"\ufeff{TOKEN}\r\n",
        f"DISCORD_TOKEN={TOKEN}",
        f'export DISCORD_TOKEN="{TOKEN}"',
        f"Authorization: Bot {TOKEN}",
        f"token: {TOKEN}",
        f"{TOKEN[:40]}\n{TOKEN[40:]}",
        f"`{TOKEN}`",
        f"\u200b{TOKEN}\u00a0",
    ],
)
def test_a_token_is_understood_however_it_was_pasted(tmp_path: Path, pasted: str) -> None:
    file = tmp_path / "token"
    file.write_text(pasted, encoding="utf-8", newline="")
    for env in (
        {"DISCORD_TOKEN": pasted},
        {"DISCORD_TOKEN_FILE": str(file)},
        {"DISCORD_TOKEN_FILE": f'"{file}"\n'},
    ):
        token = load_config(tmp_path / "strop.toml", env).discord.token
        assert token is not None and token.get_secret_value() == TOKEN


@given(st.from_regex(r"[A-Za-z0-9_-]{24}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{38}", fullmatch=True))
def test_a_bare_token_is_left_as_it_is(token: str) -> None:
    assert bare_token(token) == token


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_configuration_and_a_token_file_may_have_a_byte_order_mark(tmp_path: Path, charset: str) -> None:
    path, token = tmp_path / "strop.toml", tmp_path / "token"
    path.write_bytes('[server]\r\nport = 8741\r\n[chat]\r\nsystem_prompt = "Grüße"\r\n'.encode(charset))
    token.write_bytes(TOKEN.encode(charset))
    config = load_config(path, {"DISCORD_TOKEN_FILE": str(token)})
    assert (config.server.port, config.chat.system_prompt) == (8741, "Grüße")
    assert config.discord.token is not None and config.discord.token.get_secret_value() == TOKEN
    assert decode(codecs.BOM_UTF8) == ""


def test_a_token_file_that_is_a_folder_or_empty_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(codecs.BOM_UTF8 + b"\n")
    for name, said in ((".", "Is a directory"), ("empty", "is empty")):
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / "strop.toml", {"DISCORD_TOKEN_FILE": str(tmp_path / name)})


@pytest.mark.parametrize(
    ("env", "text", "proxy"),
    [
        ({}, "", None),
        ({"HTTPS_PROXY": "http://proxy.lan:3128"}, "", "http://proxy.lan:3128"),
        ({"https_proxy": "proxy.lan:3128"}, "", "http://proxy.lan:3128"),
        ({"HTTPS_PROXY": "http://a:1"}, '[network]\nproxy = "http://b:2"', "http://b:2"),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "lan, .discord.com"}, "", None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "*"}, "", None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "cord.com"}, "", "http://a:1"),
    ],
)
def test_the_proxy_is_the_files_or_the_environments(
    tmp_path: Path, env: dict[str, str], text: str, proxy: str | None
) -> None:
    (tmp_path / "strop.toml").write_text(text)
    network = load_config(tmp_path / "strop.toml", env).network
    assert network.proxy_for("https://gateway.discord.com/?v=10") == proxy
    assert network.proxy_for("http://127.0.0.1:8601") is network.proxy_for("http://localhost") is None


def test_another_kind_of_proxy_is_refused_without_showing_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "strop.toml", {"HTTPS_PROXY": "socks5://ann:secret@proxy.lan:1080"})
    assert "network.proxy: must start with http" in str(caught.value) and "secret" not in str(caught.value)
