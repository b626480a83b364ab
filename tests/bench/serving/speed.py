"""Decoding beside ``generate`` with PEFT, llama.cpp and vLLM, all in one run; the memory's share as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias

from bot.serving.engine.engine import EngineOptions
from bot.serving.errors import BaseRefusedError
from bot.serving.model.sources import packaged_base
from tests.bench.serving.errors import BenchError, PeerFailedError
from tests.bench.serving.lora_gguf import write_lora_gguf
from tests.bench.serving.machine import describe_machine, read_bandwidth
from tests.bench.serving.memory_bound import BytesPerStep, held_bytes, nf4_bytes
from tests.bench.serving.peer import LLAMA_CPP, VLLM, PeerSide
from tests.bench.serving.peft_side import PeftSide
from tests.bench.serving.plain_base import write_plain_base
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row, Section, missing_row, speed_row
from tests.bench.serving.strop_side import EngineSide
from tests.bench.serving.timing import Side, Timing, take_turns
from tests.bench.serving.workload import random_prompts

Goals: TypeAlias = Mapping[int, tuple[float, float]]
NO_GOAL = (None, None)
# What the project asks of itself, (at least, aim) by the number of streams: decoding, and with the prompt.
GOALS: dict[Section, tuple[Goals, Goals]] = {
    "generate": (
        {1: (1.5, 2.5), 4: (1.5, 2.5), 8: (1.5, 2.5), 16: (1.8, 2.5)},
        {4: (1.5, 2.5), 16: (1.5, 2.5)},
    ),
    "llama.cpp": ({1: (0.8, 1.1), 4: (1.0, 1.1), 16: (1.0, 1.1)}, dict.fromkeys((1, 4, 16), (0.9, 1.1))),
    "vllm": ({1: (1.5, 2.0), 16: (1.0, 2.0)}, {}),
}
PEERS: tuple[Section, ...] = ("llama.cpp", "vllm")
CEILING_GOAL = (0.4, 0.6)
WARM_UP_TOKENS = 4


class SpeedTest:
    """Every side, loaded once; a peer that fails is left out, with its last word as the reason."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._profile = setting.profile
        slots = max(self._profile.streams)
        self._engine = EngineSide(
            setting.folder,
            setting.adapters_dir,
            device=setting.device,
            options=EngineOptions(slots=slots, threads=setting.threads),
        )
        self._engine.use(setting.adapters[0])
        generate = "generate" in self._profile.beside
        self._unfolded = self._generate_on("unfolded") if generate else None
        slow = generate and self._profile.as_loaded_streams
        self._as_loaded = self._generate_on("as loaded") if slow else None
        self.versions: dict[str, str] = {}
        self._peers: dict[Section, PeerSide] = {}
        self._absent: dict[Section, str] = {}
        for section in PEERS:
            if section in self._profile.beside:
                self._start_peer(section)
        self._bandwidths: list[float] = []

    def close(self) -> None:
        """End all sides."""
        generates = [side for side in (self._unfolded, self._as_loaded) if side]
        sides: list[Side] = [self._engine, *generates, *self._peers.values()]
        for side in sides:
            side.close()

    def _generate_on(self, weights: Literal["unfolded", "as loaded"]) -> PeftSide:
        setting = self._setting
        return PeftSide(setting.folder, setting.adapters[0], device=setting.device, weights=weights)

    def _generates(self, streams: int) -> list[PeftSide]:
        slow = self._as_loaded if streams in self._profile.as_loaded_streams else None
        return [side for side in (self._unfolded, slow) if side]

    def _start_peer(self, section: Section) -> None:
        setting = self._setting
        try:
            if section == "llama.cpp":
                peer = PeerSide.start(LLAMA_CPP, setting.peers_dir, **_llama_files(setting))
            else:
                peer = PeerSide.start(VLLM, setting.peers_dir, **_vllm_files(setting))
        except (BenchError, BaseRefusedError) as error:
            self._absent[section] = str(error)
            setting.say(f"{section}: {error}")
            return
        self._peers[section] = peer
        self.versions.update(peer.versions)

    def rows_for(self, streams: int) -> list[Row]:
        """Measure one number of streams on every side, in turns."""
        setting, profile = self._setting, self._profile
        self._warm_up(streams)
        turns = [
            random_prompts(streams, profile.prompt_tokens, setting.vocabulary, seed=1000 * streams + turn)
            for turn in range(profile.pairs)
        ]
        sides: list[Side] = [self._engine, *self._generates(streams), *self._peers.values()]
        self._bandwidths.append(read_bandwidth())
        taken = self._take_turns(sides, turns, streams)
        return self._compare(streams, taken)

    def _warm_up(self, streams: int) -> None:
        """Let every side meet the sizes that come; a peer that cannot is left out from here on."""
        prompts = random_prompts(streams, 8, self._setting.vocabulary, seed=streams)
        sides: list[Side] = [self._engine, *self._generates(streams)]
        for side in sides:
            side.run(prompts, WARM_UP_TOKENS + 2 * streams)
        for section, peer in list(self._peers.items()):
            try:
                peer.run(prompts, WARM_UP_TOKENS)
            except PeerFailedError as error:
                self._drop(section, str(error))

    def _take_turns(
        self, sides: Sequence[Side], turns: Sequence[list[list[int]]], streams: int
    ) -> dict[str, list[Timing]]:
        """Measure; where a peer fails on the way, measure again without peers."""
        tokens = self._profile.tokens_for(streams)
        try:
            return take_turns(sides, turns, tokens)
        except PeerFailedError as error:
            for section in list(self._peers):
                self._drop(section, str(error))
            return take_turns([self._engine, *self._generates(streams)], turns, tokens)

    def _drop(self, section: Section, reason: str) -> None:
        self._absent[section] = reason
        self._peers.pop(section).close()
        self._setting.say(f"{section}: {reason}")

    def _compare(self, streams: int, taken: dict[str, list[Timing]]) -> list[Row]:
        ours, on_gpu = taken[self._engine.name], self._setting.on_gpu
        fastest = max(
            (side.name for side in self._generates(streams)),
            key=lambda name: median(timing.decode_rate() for timing in taken[name]),
            default=None,
        )
        rows = [
            self._row("generate", side.name, taken, judged=side.name == fastest)
            for side in self._generates(streams)
        ]
        for section in PEERS:
            if section in self._profile.beside:
                peer = self._peers.get(section)
                rows.append(
                    self._row(section, peer.name, taken)
                    if peer
                    else missing_row(section, streams, self._absent[section])
                )
        if streams == 1 and not on_gpu:
            rows += self._ceiling_rows(ours)
        return rows

    def _row(
        self, section: Section, other: str, taken: Mapping[str, Sequence[Timing]], *, judged: bool = True
    ) -> Row:
        ours, theirs = taken[self._engine.name], taken[other]
        decoding, whole = (goals.get(ours[0].streams, NO_GOAL) for goals in GOALS[section])
        return speed_row(
            section,
            ours,
            theirs,
            peer=other,
            goal=decoding if judged else NO_GOAL,
            whole_goal=whole if judged else NO_GOAL,
            on_gpu=self._setting.on_gpu,
        )

    def _ceiling_rows(self, ours: Sequence[Timing]) -> list[Row]:
        """Compare one stream with what the memory allows: for the 4-bit form and as it is held."""
        self._bandwidths.append(read_bandwidth())
        bandwidth = median(self._bandwidths)
        context = self._profile.prompt_tokens + self._profile.tokens_for(1) // 2
        rate = median(timing.decode_rate() for timing in ours)
        ideal = nf4_bytes(self._setting.info, self._setting.folder)
        held = held_bytes(self._engine.base)
        return [
            self._ceiling_row(f"of the {name}", rate, bandwidth, step, context, goal)
            for name, step, goal in (
                ("4-bit weights", ideal, CEILING_GOAL),
                ("weights as held", held, (None, None)),
            )
        ]

    @staticmethod
    def _ceiling_row(
        case: str,
        rate: float,
        bandwidth: float,
        step: BytesPerStep,
        context: int,
        goal: tuple[float | None, float | None],
    ) -> Row:
        ceiling = step.ceiling(bandwidth, 1, context)
        megabytes = (step.weights + context * step.kv_per_token) / 1e6
        return Row(
            section="ceiling",
            case=case,
            unit="tokens/CPU-s",
            ours=rate,
            theirs=ceiling,
            ratio=rate / ceiling,
            at_least=goal[0],
            aim=goal[1],
            note=f"{megabytes:.0f} MB a token at {bandwidth / 1e9:.1f} GB/s",
            raw={"bandwidth": bandwidth, "weights": step.weights, "kv_per_token": step.kv_per_token},
        )


def _llama_files(setting: Setting) -> dict[str, str]:
    """Write the adapter for llama.cpp and name the files that it loads; only the packaged base has a GGUF.

    Raises:
        BenchError: another base is measured.
    """
    source = packaged_base()
    if setting.info.id != source.id:
        raise BenchError(f"not measured: only {source.id} has a GGUF file here")
    work = setting.peers_dir / "llama-cpp-files"
    work.mkdir(parents=True, exist_ok=True)
    lora = work / f"{setting.adapters[0].name}.gguf"
    if not lora.exists():
        write_lora_gguf(setting.adapters[0], setting.folder, lora)
    quantized = work / f"{source.id}.Q4_0.gguf"
    return {"source": str(_path(source.path)), "quantized": str(quantized), "lora": str(lora)}


def _vllm_files(setting: Setting) -> dict[str, str]:
    """Write the plain base for vLLM and choose its arithmetic: bfloat16 where instructions have it."""
    plain = setting.peers_dir / "vllm-files" / setting.folder.name
    plain.parent.mkdir(parents=True, exist_ok=True)
    write_plain_base(setting.folder, plain)
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & set(describe_machine().flags)
    dtype = "bfloat16" if fast else "float32"
    return {"model": str(plain.resolve()), "adapter": str(setting.adapters[0].resolve()), "dtype": dtype}


def _path(path: Path | None) -> Path:
    if path is None:
        raise BenchError("not measured: the packaged GGUF file is missing")
    return path
