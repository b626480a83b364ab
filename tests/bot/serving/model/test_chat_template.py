"""A chat template is tried before anyone is answered through it, and prompts follow what it can do."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bot.serving.errors import BaseRefusedError, RequestRejectedError
from bot.serving.model.capabilities import BaseCapabilities
from bot.serving.model.chat_template import ChatTemplate, arrange, plain_reply
from bot.serving.model.quantize import prepare_base
from bot.serving.protocol import ChatMessage, Role
from tests.tiny_model import build_tiny_base, build_tiny_tokenizer
from trainer.data.examples import BaseCodec

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}"
# As Gemma 1 and 2 and the early Mistral models have it: no system role, and turns that alternate.
STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}" + TURN + "{% endfor %}" + PROMPT
)
# Drops a system message without a word.
DEAF = "{% for m in messages %}{% if m['role'] != 'system' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
# As Qwen3 has it: an empty thought in front of the answer switches thinking off.
SWITCHED = EACH + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As DeepSeek's distilled models have it: every answer begins with a thought.
THINKING = EACH + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rendered(template: str, *turns: tuple[Role, str], generation: bool = True) -> str:
    known = tokenizer(template)
    messages = [ChatMessage(role, content) for role, content in turns]
    ids = ChatTemplate(known).render(messages, add_generation_prompt=generation)
    # The trainer's prompts are the server's.
    if generation:
        assert BaseCodec(known).prompt_ids(messages) == ids
    return str(known.decode(ids))


def capabilities(template: str) -> BaseCapabilities:
    return ChatTemplate(tokenizer(template)).capabilities


def test_an_ordinary_template_can_do_everything() -> None:
    found = ChatTemplate(build_tiny_tokenizer()).capabilities
    assert found == BaseCapabilities(stop_tokens=("<|im_start|>", "<|im_end|>"))
    assert found.sentence() == "takes a system role; turns in any order; ends with <|im_start|>, <|im_end|>"


@pytest.mark.parametrize("template", [STRICT, DEAF])
def test_without_a_system_role_the_persona_goes_into_the_first_turn(template: str) -> None:
    assert not capabilities(template).system_role
    assert "the persona goes into the first turn" in capabilities(template).sentence()
    text = rendered(template, ("system", "You are kind."), ("user", "Hello"))
    assert text == "<|im_start|>user\nYou are kind.\n\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_where_turns_have_to_alternate_none_is_lost() -> None:
    assert not capabilities(STRICT).free_order
    turns: list[tuple[Role, str]] = [
        ("system", "Be kind."),
        ("assistant", "Good morning."),
        ("user", "One."),
        ("user", "Two."),
        ("assistant", "Three."),
        ("system", "Be brief."),
        ("user", "Four."),
    ]
    text = rendered(STRICT, *turns)
    assert all(content in text for _, content in turns)
    assert "One.\n\nTwo." in text
    assert "Be brief.\n\nFour." in text
    assert rendered(STRICT, ("assistant", "Hi.")).startswith("<|im_start|>user\n<|im_end|>\n")


def test_where_nothing_is_missing_nothing_is_rearranged() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "assistant", "user", "user", "system")]
    assert arrange(turns, BaseCapabilities()) == turns


def test_a_base_without_a_usable_template_is_refused_by_name(tmp_path: Path) -> None:
    for template, why in [
        ("", "no chat template"),
        ("{{ raise_exception('never') }}", "renders no question: never"),
    ]:
        source = build_tiny_base(tmp_path / f"tiny{len(template)}")
        (source / "chat_template.jinja").write_text(template)
        if not template:
            (source / "chat_template.jinja").unlink()
        with pytest.raises(BaseRefusedError, match=f"{source.name} can't chat.*{why}"):
            prepare_base(str(source), "", device="cpu", models_dir=tmp_path / "models")


def test_what_a_template_still_refuses_is_a_bad_request() -> None:
    fussy = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + EACH + PROMPT
    with pytest.raises(RequestRejectedError, match="refuses these messages: too long"):
        rendered(fussy, ("user", "1"), ("assistant", "2"), ("user", "3"))


def test_thinking_is_switched_off_where_the_template_knows_how() -> None:
    assert capabilities(SWITCHED).thinking_switch == "enable_thinking"
    assert not capabilities(SWITCHED).opens_thought
    assert rendered(SWITCHED, ("user", "Hello")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert capabilities(EACH + PROMPT).thinking_switch == ""
    # A name in the text alone is no switch.
    assert capabilities("{# enable_thinking #}" + EACH + PROMPT).thinking_switch == ""


def test_a_base_that_always_thinks_says_so() -> None:
    assert capabilities(THINKING).opens_thought
    assert "can't be switched off" in capabilities(THINKING).sentence()


def test_earlier_thoughts_are_not_sent_back_nor_trained_on() -> None:
    text = rendered(
        EACH + PROMPT, ("user", "Hi"), ("assistant", "<think>hm</think>\n\nHello"), ("user", "Bye")
    )
    assert "hm" not in text
    assert "<|im_start|>assistant\nHello<|im_end|>" in text
    assert plain_reply(build_tiny_tokenizer(), "<think>hm</think>\n\nHello") == "Hello"
    codec = BaseCodec(build_tiny_tokenizer())
    assert codec.text_ids("<think>hm</think>\n\nHello") == codec.text_ids("Hello")


def test_a_reply_ends_with_the_token_that_the_template_writes_behind_it() -> None:
    known = tokenizer((EACH + PROMPT).replace("<|im_end|>", "<|endoftext|>"))
    assert known.eos_token == "<|im_end|>"
    end = known.convert_tokens_to_ids("<|endoftext|>")
    assert BaseCodec(known).stop_id == end
    assert end in ChatTemplate(known).end_tokens()
    assert (
        BaseCodec(tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")).stop_id
        == known.eos_token_id
    )
