"""Which base this is: the same value for trainer, bot and any server, in whatever precision (torch-free).

**What it is for.** An adapter was trained on one base and is worthless on another, so everything that is
learned belongs to a base: adapters, champions, evaluations. Whoever puts the two together has to know that
they belong together, also where base and adapter meet in a process that is not ours (vLLM), or on another
machine.

**What it holds.** `source` and `revision` say which weights: a model on the hub with its commit, or for
files from anywhere else the hash of their contents. `chat_template_hash` says how the base is spoken to:
the same weights behind another template see other prompts, and an adapter learned through one of them.

**What it leaves out: precision.** Our own engine multiplies 4-bit values, vLLM may hold the same base in
bfloat16. An adapter trained on one form serves on the other; scores of the two differ in the third digit,
so whoever compares scores compares `Precision` too. Device, kernels and machine are no part of it either.

**How it stands beside the older hash.** Until now one hash (`BaseInfo.hash`) stood for all of it: source
files and their quantization together. Champions in every deployment hang on that hash, so it stays their
key. The table `base_identities` says which identity each hash stands for; it fills as bases are seen. A
server that reports an identity and no hash is found by it (`storage.learning.bases`), and a champion chosen
under the old hash answers there. Nothing that exists is rewritten.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

# The form in which our own engine and trainer hold a base: NF4 with double quantization.
NF4 = "nf4"
# The form of an engine that can't read NF4.
BFLOAT16 = "bfloat16"

FILES = "files"
HUB = "hub:"


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """A base, whoever serves it.

    Attributes:
        source: `hub:<owner>/<name>`, or `files` for a folder or a GGUF file.
        revision: the hub's commit; for files the sha256 of their names and contents.
        chat_template_hash: the sha256 of the chat template's text.
    """

    source: str
    revision: str
    chat_template_hash: str

    @property
    def key(self) -> str:
        """One hash of it all, for places that hold a single string."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def is_known(self) -> bool:
        """Whether nothing is missing: two unknown bases are not the same base."""
        return bool(self.source and self.revision and self.chat_template_hash)

    @property
    def label(self) -> str:
        """A name for people: the model or its files, and which revision of them."""
        return f"{self.source.removeprefix(HUB)}@{self.revision[:12]}"

    def difference(self, other: BaseIdentity) -> tuple[str, str] | None:
        """Return how the other base and this one are called, told apart; None where it is the same base."""
        if other == self:
            return None
        mine, theirs = self.label, other.label
        if mine == theirs:
            mine += f"/template-{self.chat_template_hash[:12]}"
            theirs += f"/template-{other.chat_template_hash[:12]}"
        return theirs, mine


def identify(source_key: str, content_hash: str, chat_template_hash: str) -> BaseIdentity:
    """Return the identity of a prepared base from what its `base.json` says.

    `source_key` is `<kind>:<id>@<revision>`; `content_hash` identifies the files of any base but the hub's.
    """
    name, _, revision = source_key.partition("@")
    if name.startswith(HUB):
        return BaseIdentity(name, revision, chat_template_hash)
    return BaseIdentity(FILES, content_hash, chat_template_hash)


def find_mismatch(served: BaseIdentity, base: str, revision: str) -> tuple[str, str] | None:
    """Return the base that a server has in place of the configured hub base, and that one; None if it has it.

    A configuration that names files, or leaves the choice open (`auto`), can't be compared with a server
    elsewhere.
    """
    names_files = base.startswith(("/", ".", "~")) or base.endswith(".gguf")
    if base in ("", "auto") or names_files or not served.source.startswith(HUB):
        return None
    wanted = BaseIdentity(HUB + base, revision or served.revision, served.chat_template_hash)
    return wanted.difference(served)
