"""Numbers on their way out: means kept on the device, metrics.jsonl, and the console line of an interval."""

import json
import logging
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CONSOLE_LOSSES = {"rec": "loss/rec/", "dyn": "loss/dyn", "pol": "loss/policy", "val": "loss/value"}
"""Console label -> the metric it shows; one that ends in / is the sum over its keys."""

HostSums = dict[str, list[float]]
DeviceSums = list[tuple[tuple[str, ...], Tensor]]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Record = dict[str, Json]


class _Sum:
    """Float64 sums of one fixed tuple of names, and last how often they were added; the tensor never moves."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.total = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self.one = torch.ones((), device=device)


class Metrics:
    """Means of named values between two flushes. Names may come and go from one `add` to the next.

    Tensors are summed where they live, in float64 and without a host sync: a few kernels per `add`, however many names.
    From the second `add` of the same names on it can be part of a CUDA graph.
    """

    def __init__(self) -> None:
        self._device: dict[tuple[str, ...], _Sum] = {}
        self._host: dict[str, list[float]] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor | float], valid: Tensor | None = None) -> None:
        """Adds one observation of each name: 0-d tensors, all on one device, or plain numbers.

        valid () bool: false leaves the tensors out. They may be overwritten once this returns. Raises ValueError for a
        tensor that is not 0-d.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in values.items():
            if not isinstance(value, Tensor):
                self._host.setdefault(name, []).append(float(value))
            elif value.dim():
                raise ValueError(f"metric {name} must be a 0-d tensor, got shape {tuple(value.shape)}")
            else:  # stacking int64 or bfloat16 with others would round it
                tensors[name] = value if value.dtype == torch.float32 else value.double()
        if tensors:
            names, first = tuple(tensors), next(iter(tensors.values()))
            if names not in self._device:
                self._device[names] = _Sum(names, first.device)
            group = self._device[names]
            stacked = torch.stack([*tensors.values(), group.one])
            group.total.add_(stacked if valid is None else torch.where(valid, stacked, 0.0))

    def take_host(self) -> HostSums:
        """The plain numbers since the last time; starts over with them."""
        taken, self._host = self._host, {}
        return taken

    def take_device(self) -> DeviceSums:
        """The sums of tensors since the last time, on their way to the host in the order of the current stream."""
        taken = [(group.names, fetch(group.total)) for group in self._device.values()]
        for group in self._device.values():
            group.total.zero_()
        return taken

    def flush(self) -> dict[str, float]:
        """The mean of every name added since the last flush, then starts over; waits for the device.

        A mean is not finite where one of its values was not.
        """
        device = self.take_device()
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return means(self.take_host(), device)


def means(host: HostSums, device: DeviceSums) -> dict[str, float]:
    """The mean of every name that was added; once the stream has come to what was taken of the device."""
    totals = {name: sum(values) for name, values in host.items()}
    counts: dict[str, float] = {name: len(values) for name, values in host.items()}
    for names, sums in device:
        *values, count = sums.tolist()
        for name, total in zip(names, values, strict=True):
            totals[name], counts[name] = totals.get(name, 0.0) + total, counts.get(name, 0) + count
    return {name: total / counts[name] for name, total in totals.items() if counts[name]}


def fetch(tensor: Tensor) -> Tensor:
    """A copy on the host, of a CUDA tensor one that arrives in the order of the current stream."""
    if tensor.device.type != "cuda":
        return tensor.cpu().clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


class JsonlWriter:
    """Appends records to a file, one JSON object per line, each flushed to the operating system as it is written.

    A non-finite number is written as null and its key kept: JSON has no NaN. Opening cuts away a torn last line and,
    when a run resumes at `resume_step`, every record from the first on whose "step" is larger: the run writes those
    steps again. Raises ValueError for a value that is not a number, string, None, or a list or dict of them.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        if path.exists():
            _cut(path, resume_step)
        self._file = path.open("ab")

    def write(self, record: Mapping[str, object]) -> None:
        """Appends one record; numpy scalars and 0-d tensors are taken as numbers."""
        line = json.dumps(to_json(record, "record"), allow_nan=False, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_json(value: object, name: str) -> Json:
    """`value` as JSON can hold it, a non-finite number as None. Raises ValueError naming `name` where it cannot."""
    match value:
        case np.generic():
            return to_json(value.item(), name)
        case Tensor() if value.dim() == 0:
            return to_json(value.item(), name)
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case Mapping():
            if unfit := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"{name} cannot be written as JSON: key {unfit[0]!r} is not a string")
            return {key: to_json(item, f"{name}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [to_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{name} cannot be written as JSON: {type(value).__name__}")


def read_jsonl(path: Path) -> list[Record]:
    """Every record of a file that JsonlWriter wrote, null as None; a torn last line is left out.

    Raises ValueError naming the line that is not a JSON object.
    """
    return [_parse(path, number, line) for number, line in enumerate(_whole_lines(path.read_bytes()), 1)]


def _whole_lines(data: bytes) -> list[bytes]:
    # the last newline ends the last whole record: what follows was cut off while being written
    return data.split(b"\n")[:-1]


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not JSON: {line[:40]!r}") from error
    if isinstance(record, dict):
        return record
    raise ValueError(f"{path}:{number}: not a JSON object: {line[:40]!r}")


def _cut(path: Path, resume_step: int | None) -> None:
    data = path.read_bytes()
    keep = 0
    for number, line in enumerate(_whole_lines(data), 1):
        step = None if resume_step is None else _parse(path, number, line).get("step")
        if isinstance(step, int) and resume_step is not None and step > resume_step:
            break
        keep += len(line) + 1
    if keep < len(data):
        logger.warning("%s: cut %d bytes that were torn or belong to steps to be run again", path, len(data) - keep)
        with path.open("r+b") as file:
            file.truncate(keep)


def compact(value: float | None) -> str:
    """A number in exactly 5 characters: as many decimals as fit, at most 3; k, M, G, T for thousands; - for None."""
    if value is None:
        return "    -"
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1000):
        return f"{value:5.0f}"
    size, sign = abs(value), "-" if value < 0 else ""
    for unit in ("", "k", "M", "G", "T"):
        if size < 999.5:
            texts = (f"{sign}{size:.{decimals}f}{unit}" for decimals in (3, 2, 1, 0))
            return next(text for text in texts if len(text) <= 5).rjust(5)
        size /= 1000
    return f"{sign}huge".rjust(5)


def console_line(record: Mapping[str, object]) -> str:
    """One line of at most 120 columns for the record of a log interval; a number that is missing shows as -.

    Reads step, frame, update, steps_per_second, updates_per_second, elapsed (seconds), return_last20 and the losses
    of CONSOLE_LOSSES. Frames are shown where they differ from steps.
    """
    numbers = _numbers(record)
    step, frame = numbers.get("step"), numbers.get("frame")
    columns = [
        f"{clock(numbers.get('elapsed')):>7}",
        f"step {'-' if step is None else format(step, '.0f'):>8} {compact(numbers.get('steps_per_second'))}/s",
        f"upd {compact(numbers.get('update'))} {compact(numbers.get('updates_per_second'))}/s",
        f"return {_score(numbers.get('return_last20')):>7}",
        " ".join(f"{label} {compact(loss)}" for label, loss in console_losses(record).items()),
    ]
    if frame is not None and frame != step:
        columns.insert(2, f"frame {compact(frame)}")
    return "  ".join(columns)


def console_losses(record: Mapping[str, object]) -> dict[str, float | None]:
    """Label -> loss of CONSOLE_LOSSES, None for what the record does not have."""
    numbers = _numbers(record)
    return {label: _loss(numbers, metric) for label, metric in CONSOLE_LOSSES.items()}


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in record.items() if isinstance(value, Real)}


def _loss(numbers: dict[str, float], metric: str) -> float | None:
    if not metric.endswith("/"):
        return numbers.get(metric)
    terms = [value for key, value in numbers.items() if key.startswith(metric)]
    return sum(terms) if terms else None


def _score(value: float | None) -> str:
    return f"{value:.1f}" if value is not None and abs(value) < 9999.9 else compact(value)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; - for None."""
    if seconds is None:
        return "-"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours}:{minutes:02}:{int(seconds) % 60:02}" if hours < 100 else f"{hours}h{minutes:02}m"
