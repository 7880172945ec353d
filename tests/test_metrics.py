"""Means on the device, the jsonl file through tearing and resuming, and the console line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastdreamer.metrics import JsonlWriter, Metrics, compact, console_line, read_jsonl, to_json


class OperatorLog(TorchDispatchMode):
    """Writes down every tensor operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def scalar(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def test_flush_gives_the_mean_of_what_was_added_and_starts_over() -> None:
    metrics = Metrics()
    metrics.add({"loss": scalar(1.0), "norm": scalar(10.0)})
    metrics.add({"loss": scalar(4.0), "norm": scalar(20.0)})
    assert metrics.flush() == {"loss": 2.5, "norm": 15.0}
    assert metrics.flush() == {}
    for _ in range(2):
        metrics.add({"loss": scalar(7.0), "return": 3.0})
        assert metrics.flush() == {"loss": 7.0, "return": 3.0}


def test_names_may_come_and_go_and_change_their_order() -> None:
    metrics = Metrics()
    metrics.add({"a": scalar(1.0), "b": scalar(2.0)})
    metrics.add({"b": scalar(4.0), "a": scalar(3.0)})
    metrics.add({"b": scalar(9.0), "c": scalar(5.0)})
    metrics.add({"c": 7.0, "return": 12})
    assert metrics.flush() == {"a": 2.0, "b": 5.0, "c": 6.0, "return": 12.0}


def test_a_buffer_may_be_overwritten_after_it_was_added() -> None:
    metrics, buffer = Metrics(), scalar(1.0)
    for value in (1.0, 2.0, 6.0):
        buffer.fill_(value)
        metrics.add({"loss": buffer})
    buffer.fill_(100.0)
    assert metrics.flush() == {"loss": 3.0}


def test_sums_do_not_round() -> None:
    metrics, big = Metrics(), 2**24
    for _ in range(1000):
        metrics.add({"count": scalar(big + 1, torch.int64), "half": scalar(1.5, torch.bfloat16), "f": scalar(big)})
        metrics.add({"count": scalar(big + 1, torch.int64), "half": scalar(1.5, torch.bfloat16), "f": scalar(1.0)})
    assert metrics.flush() == {"count": big + 1, "half": 1.5, "f": (big + 1) / 2}


def test_sums_of_float32_are_formed_in_float64() -> None:
    metrics = Metrics()
    for value in (2.0**24, 1.0, 1.0, 1.0):
        metrics.add({"x": scalar(value)})
    assert metrics.flush() == {"x": (2**24 + 3) / 4}


def test_a_value_with_a_gradient_does_not_keep_its_graph() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.add({"loss": scalar(2.0).requires_grad_().exp()})
    assert [group.total.requires_grad for group in metrics._device.values()] == [False]


def test_adding_takes_two_operations_and_none_that_waits_for_the_device() -> None:
    metrics = Metrics()
    values = {f"m{i}": scalar(i).requires_grad_() for i in range(30)}
    metrics.add(values)
    with OperatorLog() as log:
        metrics.add(values)
    assert [name for name in log.names if "detach" not in name] == ["aten.stack.default", "aten.add_.Tensor"]
    with OperatorLog() as log:
        means = metrics.flush()
    assert log.names.count("aten._to_copy.default") + log.names.count("aten._local_scalar_dense.default") <= 1
    assert means == {f"m{i}": float(i) for i in range(30)}


def test_a_mean_with_a_nan_in_it_is_nan_and_the_others_are_not() -> None:
    metrics = Metrics()
    metrics.add({"a": scalar(math.nan), "b": scalar(1.0)})
    metrics.add({"a": scalar(1.0), "b": scalar(math.inf)})
    means = metrics.flush()
    assert math.isnan(means["a"])
    assert means["b"] == math.inf


def test_a_metric_that_is_not_a_scalar_is_named() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match=r"metric loss/rec must be a 0-d tensor, got shape \(2, 3\)"):
        metrics.add({"a": scalar(1.0), "loss/rec": torch.zeros(2, 3)})


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
Records = st.lists(st.dictionaries(st.text(), Json, max_size=4), max_size=5)


@settings(max_examples=50, deadline=None)
@given(records=Records)
def test_what_is_written_is_read_back(
    records: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        for record in records:
            writer.write(record)
    assert read_jsonl(path) == records
    assert path.read_bytes().count(b"\n") == len(records)


@settings(max_examples=50, deadline=None)
@given(records=Records.filter(bool), data=st.data())
def test_a_file_torn_at_any_byte_goes_on_after_its_last_whole_record(
    records: list[dict[str, object]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        for record in records:
            writer.write(record)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    intact = path.read_bytes().count(b"\n")
    assert read_jsonl(path) == records[:intact]
    with JsonlWriter(path) as writer:
        writer.write({"step": 1})
    assert read_jsonl(path) == [*records[:intact], {"step": 1}]


def test_numbers_that_json_lacks_become_null_and_keep_their_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"step": 1, "loss": math.nan, "list": [math.inf, 1.0], "np": np.float32("-inf")})
    assert path.read_text() == '{"step":1,"loss":null,"list":[null,1.0],"np":null}\n'
    assert read_jsonl(path) == [{"step": 1, "loss": None, "list": [None, 1.0], "np": None}]


def test_numpy_and_torch_scalars_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = {
        "a": np.float32(0.5),
        "b": np.int64(2**40),
        "c": np.bool_(True),
        "d": scalar(0.25),
        "e": scalar(3, torch.int64),
    }
    with JsonlWriter(path) as writer:
        writer.write(record)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": 2**40, "c": True, "d": 0.25, "e": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": [1, torch.zeros(2)]}}, r"record\.a\.b\[1\] cannot be written as JSON: Tensor"),
        ({"a": Path("x")}, r"record\.a cannot be written as JSON: PosixPath"),
        ({"a": {1: 2}}, r"record\.a cannot be written as JSON: key 1 is not a string"),
    ],
)
def test_a_value_that_json_cannot_hold_is_named_and_nothing_is_written(
    value: dict[str, object], message: str, tmp_path: Path
) -> None:
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer, pytest.raises(ValueError, match=message):
        writer.write(value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_each_record_is_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        for step in range(3):
            writer.write({"step": step})
            assert [record["step"] for record in read_jsonl(path)] == list(range(step + 1))


def test_resuming_drops_the_records_of_steps_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        for step in (100, 200, 300):
            writer.write({"step": step, "x": 1})
            writer.write({"note": step})
    with JsonlWriter(path, resume_step=200) as writer:
        writer.write({"step": 250, "x": 2})
    expected = [{"step": 100, "x": 1}, {"note": 100}, {"step": 200, "x": 1}, {"note": 200}, {"step": 250, "x": 2}]
    assert read_jsonl(path) == expected


def test_opening_a_whole_file_leaves_it_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n')
    JsonlWriter(path, resume_step=1).close()
    assert path.read_text() == '{"step":1}\n'
    assert caplog.messages == []
    path.write_text('{"step":1}\n{"st')
    JsonlWriter(path).close()
    assert path.read_text() == '{"step":1}\n'
    assert "cut 4 bytes" in caplog.messages[0]


@pytest.mark.parametrize(("line", "what"), [("{'a': 1}", "not JSON"), ("[1]", "not a JSON object"), ("", "not JSON")])
def test_a_line_that_is_no_record_is_named(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step":1}}\n{line}\n{{"step":2}}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:2: {what}"):
        read_jsonl(path)


def test_to_json_keeps_what_is_json() -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": ()}}
    assert to_json(value, "x") == {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}


@given(st.floats() | st.integers(-(10**16), 10**16) | st.none())
def test_a_compact_number_is_five_characters(value: float | None) -> None:
    assert len(compact(value)) == 5


@given(st.floats(0.01, 9.99e14) | st.floats(-9.99e14, -0.1))
def test_a_compact_number_keeps_its_leading_digits(value: float) -> None:
    text = compact(value).strip()
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1.0)
    shown = float(text.rstrip("kMGT")) * scale
    # 5 characters, two of them a point and a unit or a sign: at worst x.xk or -0.xx
    assert abs(shown - value) <= max(0.051 * abs(value), 0.0051 if value < 0 else 0.00051)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "    0"), (17, "   17"), (1.2345, "1.234"), (9.9999, "10.00"), (999.6, "1.00k"), (12345, "12.3k"),
        (-0.0123, "-0.01"), (-123456, "-123k"), (1e15, " huge"), (math.nan, "  nan"), (-math.inf, " -inf"),
        (None, "    -"),
    ],
)  # fmt: skip
def test_compact(value: float | None, text: str) -> None:
    assert compact(value) == text


RECORD = {
    "step": 1234567,
    "frame": 4938268,
    "update": 38580,
    "elapsed": 45296.7,
    "steps_per_second": 123.4,
    "updates_per_second": 3.9,
    "return_last20": 475.04,
    "loss/rec/image": 100.0,
    "loss/rec/vector": 23.4,
    "loss/dyn": 1.5,
    "loss/policy": -0.0512,
    "loss/value": 2.25,
}


def test_console_line_says_what_the_record_says() -> None:
    assert console_line(RECORD) == (
        "12:34:56  step  1234567 123.4/s  frame 4.94M  upd 38.6k 3.900/s  return   475.0"
        "  rec 123.4 dyn 1.500 pol -0.05 val 2.250"
    )


def test_console_line_before_learning_shows_dashes_in_the_same_columns() -> None:
    early = {"step": np.int64(16), "elapsed": 1, "frame": 16}
    line = console_line(early)
    assert line == (
        "0:00:01  step       16     -/s  upd     -     -/s  return       -  rec     - dyn     - pol     - val     -"
    )
    later = console_line({**RECORD, "frame": RECORD["step"], "elapsed": 3600})
    for label in ("step", "upd", "return", "rec", "dyn", "pol", "val"):
        assert line.index(label) == later.index(label)


def test_console_line_without_frames_and_with_a_large_return() -> None:
    line = console_line({"step": 5, "return_last20": -123456.0})
    assert "frame" not in line
    assert "return   -123k" in line
    assert "return -9999.4" in console_line({"return_last20": -9999.4})


@given(
    values=st.fixed_dictionaries({}, optional={key: st.floats() for key in RECORD if key not in ("step", "elapsed")}),
    step=st.integers(0, 10**8 - 1),
    elapsed=st.floats(0, 3e6),
)
def test_console_line_is_one_line_of_at_most_120_columns(values: dict[str, float], step: int, elapsed: float) -> None:
    line = console_line({"step": step, "elapsed": elapsed, **values})
    assert len(line) <= 120
    assert "\n" not in line
