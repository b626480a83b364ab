"""Which base answers: the configured one or, while it can't be had, the bundled one in its place.

A base may be missing for a while (the hub doesn't answer, the download takes an hour) or for good (it doesn't
fit, it is damaged). Neither may leave a community without an answer, so the bundled 135M model stands in, and
says for whom and why. A hub that doesn't answer is asked again. Once the configured base is there it takes
over between two requests; what runs on the stand-in may finish there.

Adapters belong to a base by its hash. Those of the configured base are refused by the stand-in and stay as
they are: they answer again as soon as their base does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bot.serving.errors import BaseRefusedError, BaseUnreachableError
from bot.serving.messages import NOTHING, Message
from bot.serving.model.catalogue import PACKAGED_BASE
from bot.serving.model.memory import return_freed
from bot.serving.model.sources import BaseSource, packaged_base
from bot.serving.native.library import find_compiler, load_library
from bot.serving.prepare import PreparingChild
from bot.serving.settings import Settings

if TYPE_CHECKING:
    from bot.serving.engine.runtime import Runtime

log = structlog.get_logger(__name__)

# The stand-in leaves the GPU to the base that it stands in for.
STAND_IN_DEVICE = "cpu"


class BaseLoader:
    """Loads a base for serving; made for one start, used by one thread.

    Args:
        serve: takes each runtime that is loaded, with the base that it stands in for ("" where it is the
            configured one).
        say: takes the state in one sentence, for people; "" where there is nothing to say.
        stopping: set when the server ends; waits for the hub end with it.
        retry_s: the first and the longest wait before a hub that did not answer is asked again, in seconds.
        prepare_only: another engine serves the configured base; here it is only brought onto the disk.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        serve: Callable[[Runtime, str], None],
        say: Callable[[Message], None],
        stopping: threading.Event,
        retry_s: tuple[float, float],
        prepare_only: bool = False,
    ) -> None:
        self._settings = settings
        self._prepare_only = prepare_only
        self._serve = serve
        self._tell = say
        self._stopping = stopping
        self._retry_s, self._longest_retry_s = retry_s
        self._standing_in = ""
        self._child: PreparingChild | None = None
        self._compiling = threading.Thread(target=load_library, name="kernels", daemon=True)

    def run(self) -> bool:
        """Load until the configured base answers, or it is known that it can't; return whether it is there.

        Raises:
            BaseRefusedError: neither the configured base nor the bundled one can be served here.
        """
        # The compiler is a process of its own, which works while this one imports. Where there is none,
        # whoever needs one says so: a GPU doesn't.
        if find_compiler() is not None:
            self._compiling.start()
        # At the very first start somebody has to quantize: let that one import while this process does.
        if not any(self._settings.models_dir.glob("*/base.json")):
            self._child = PreparingChild()
        try:
            return self._load()
        finally:
            if self._child is not None:
                self._child.end()

    def _load(self) -> bool:
        try:
            device, source = self._resolve()
        except BaseRefusedError as error:
            self._stand_in(self._settings.base, error)
            return False
        if self._has_to_be_downloaded(source):
            self._stand_in(source.id, BaseUnreachableError("It has to be downloaded first."))
        while (refusal := self._attempt(source, device)) is not None:
            self._stand_in(source.id, refusal)
            if not isinstance(refusal, BaseUnreachableError) or self._stopping.wait(self._next_wait_s()):
                return False
        return True

    def _resolve(self) -> tuple[str, BaseSource]:
        from bot.serving.model.loading import resolve_device
        from bot.serving.model.quantize import configured_source

        device = resolve_device(self._settings.device)
        return device, configured_source(self._settings, device)

    def _has_to_be_downloaded(self, source: BaseSource) -> bool:
        from bot.serving.model.quantize import has_to_be_downloaded

        return has_to_be_downloaded(source, self._settings.models_dir)

    def _attempt(self, source: BaseSource, device: str) -> BaseRefusedError | None:
        """Prepare, load and serve the configured base; return what stood against it."""
        try:
            if self._prepare_only:
                self._prepare(source, device)
                return None
            runtime = self._start(source, device)
        except BaseRefusedError as error:
            return error
        except Exception as error:  # the boundary of foreign loaders: whatever fails, somebody answers
            if source.id == PACKAGED_BASE:
                raise
            log.exception("base failed to load", base=source.id)
            return BaseRefusedError(f"{source.id} failed to load ({_first_line(error)}).")
        if self._standing_in:
            log.info(f"{source.id} is loaded and answers from here on.", announce=True)
        self._standing_in = ""
        self._serve(runtime, "")
        self._tell(NOTHING)
        return None

    def _start(self, source: BaseSource, device: str) -> Runtime:
        from bot.serving.engine.runtime import Runtime

        folder = self._prepare(source, device)
        if self._compiling.is_alive():
            self._compiling.join()
        runtime = Runtime.start(self._settings, folder, device, self._say)
        # Reading a vocabulary and checking the kernels leave free memory behind.
        return_freed()
        return runtime

    def _prepare(self, source: BaseSource, device: str) -> Path:
        from bot.serving.model.quantize import find_prepared

        models = self._settings.models_dir
        if found := find_prepared(source, models):
            return found
        child, self._child = self._child or PreparingChild(), None
        child.ask(source, device=device, models_dir=models)
        # Serving takes this too: seconds, in which the child works.
        import bot.serving.engine.runtime  # noqa: F401

        return child.folder(self._say)

    def _stand_in(self, wanted: str, refusal: BaseRefusedError) -> None:
        """Let the bundled base answer in place of another; where it does already, only the reason changes.

        Raises:
            BaseRefusedError: it can't, and the configured base never will.
        """
        if wanted == PACKAGED_BASE:
            raise refusal
        if not self._standing_in:
            self._start_stand_in(wanted, refusal)
        self._say(refusal.message)
        log.warning(self._sentence(refusal.message))

    def _start_stand_in(self, wanted: str, refusal: BaseRefusedError) -> None:
        try:
            runtime = self._start(packaged_base(), STAND_IN_DEVICE)
        except BaseRefusedError as error:
            if not isinstance(refusal, BaseUnreachableError):
                raise refusal from error
            # The configured base may come yet: until then the server is up and says that it waits.
            return
        self._standing_in = wanted
        self._serve(runtime, wanted)

    def _sentence(self, state: Message) -> Message:
        if not self._standing_in:
            return state
        return Message(
            "{bundled} answers in place of {base}. {reason}",
            bundled=PACKAGED_BASE,
            base=self._standing_in,
            reason=state,
        )

    def _say(self, state: Message) -> None:
        self._tell(self._sentence(state))

    def _next_wait_s(self) -> float:
        wait_s = self._retry_s
        self._retry_s = min(2 * wait_s, self._longest_retry_s)
        return wait_s


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
