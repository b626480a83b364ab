"""What the model server says to people: English text that remembers its template and values (torch-free).

Clients that speak other languages find the translation by the template; all others take the text as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias


class Message(str):
    """The English text of a template that is filled with values; a value may be a message itself."""

    template: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, /, **values: Value) -> Message:
        """Fill the template; without values the text is taken as it is."""
        message = super().__new__(cls, template.format(**values) if values else template)
        message.template = template
        message.values = values
        return message

    def as_json(self) -> dict[str, Any]:
        """Return what goes over the wire beside the text; nothing where the text is all there is."""
        if not self.values:
            return {}
        values = {
            name: value.as_json() or str(value) if isinstance(value, Message) else value
            for name, value in self.values.items()
        }
        return {"template": self.template, "values": values}


Value: TypeAlias = str | int | Message

NOTHING = Message("")


def read_message(text: str, template: object = None, values: object = None) -> Message:
    """Read a message from the wire; a server that sends only a text, or something else, gives only that."""
    try:
        message = _read({"template": template, "values": values})
    except (LookupError, TypeError, ValueError, AttributeError):
        return Message(text)
    return message if message == text else Message(text)


def _read(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    return Message(value["template"], **{name: _read(each) for name, each in value["values"].items()})
