"""What is computed in the checks for GPUs: MFU, the time budget, the result, and which wheels fit."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from gpu_check import cases, checks, flops, results, start

LLAMA3 = flops.Sizes(matrices=7_504_658_432, layers=32, width=4096)
"""All matrices of Llama 3 8B but the embedding."""
LLAMA3_ADAPTERS = 41_943_040
"""Of LoRA with rank 16 on all linear layers."""


@pytest.mark.parametrize(
    ("adapters", "length", "expected"),
    [
        # 6 per element of a matrix, and 3 * 2 * layers * width * length for attention.
        (None, 4096, 6 * 7_504_658_432 + 3_221_225_472),
        (None, 1, 6 * 7_504_658_432 + 786_432),
        # Without the gradients of the frozen matrices.
        (LLAMA3_ADAPTERS, 4096, 4 * 7_504_658_432 + 6 * LLAMA3_ADAPTERS + 3_221_225_472),
    ],
)
def test_operations_of_a_token(adapters: int | None, length: int, expected: float) -> None:
    assert flops.token_flops(LLAMA3, length, adapters=adapters) == expected


def test_mfu_agrees_with_published_figures() -> None:
    """NeMo AutoModel, LoRA of Llama 3 8B on one H100: 12,473 tokens per second are reported as 402 TFLOP/s, 40.6 %."""
    needed = flops.token_flops(LLAMA3, 4096, adapters=LLAMA3_ADAPTERS)
    assert flops.mfu(12_473, needed, 989.0) == pytest.approx(0.406, rel=0.06)


@pytest.mark.parametrize(
    ("device", "rate"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Some other device", None),
    ],
)
def test_peak_rate_by_the_name_of_the_device(device: str, rate: float | None) -> None:
    assert flops.peak_tflops(device) == rate


class Clock:
    """A clock that checks move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def check(clock: Clock, name: str, takes: float, error: Exception | None = None) -> results.Check:
    def run() -> dict[str, float]:
        clock.now += takes
        if error is not None:
            raise error
        return {"figure": takes}

    return results.Check(name, 10.0, run)


def run(clock: Clock, *wanted: results.Check, seconds: float = 100.0) -> list[results.Row]:
    return results.run_checks(wanted, results.Budget(seconds, clock), lambda _: None, clock)


def test_errors_do_not_end_the_other_checks(clock: Clock) -> None:
    rows = run(
        clock,
        check(clock, "wrong", 1, results.FailedCheckError("is wrong", {"loss": math.nan})),
        check(clock, "broken", 2, RuntimeError("CUDA error")),
        check(clock, "absent", 0, results.SkippedError("no memory")),
        check(clock, "fine", 3),
    )
    assert [(row.name, row.holds, row.seconds) for row in rows] == [
        ("wrong", False, 1),
        ("broken", False, 2),
        ("absent", None, 0),
        ("fine", True, 3),
    ]
    last = json.loads(results.last_line(rows, {"name": "GPU"}, 6))
    assert last["failed"] == ["wrong", "broken"]
    assert last["skipped"] == ["absent"]
    assert last["gpuCheck"][0] == {
        "name": "wrong",
        "holds": False,
        "reason": "is wrong",
        "figures": {"loss": "nan"},
        "seconds": 1,
    }
    assert "CUDA error" in last["gpuCheck"][1]["reason"]
    assert last["gpuCheck"][2]["holds"] == "skipped"
    assert results.exit_status(rows) == 1
    assert results.exit_status(rows[2:]) == 0


def test_checks_beyond_the_budget_are_skipped(clock: Clock) -> None:
    rows = run(clock, check(clock, "first", 85), check(clock, "second", 8), check(clock, "third", 1))
    assert [row.holds for row in rows] == [True, True, None]
    assert rows[2].reason == "7 s of the time budget are left, and it needs 10 s"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.5, 2.0], True),
        ([3.0, 3.2, 2.5, 2.6, 2.4, 2.5], True),
        ([2.0, 2.0, 2.0], False),
        ([2.0, 1.0, 3.0], False),
        ([3.0, math.nan, 1.0], False),
        ([3.0, 2.0, math.inf], False),
        ([], False),
    ],
)
def test_whether_losses_fall(losses: list[float], expected: bool) -> None:
    assert results.falls(losses) is expected


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([1.0], [1.0, 2.0], math.inf),
        ([math.nan], [1.0], math.inf),
    ],
)
def test_difference_of_losses(found: list[float], expected: list[float], difference: float) -> None:
    assert results.largest_difference(found, expected) == pytest.approx(difference)


def test_percentile_is_one_of_the_values() -> None:
    assert [results.percentile([4, 1, 3, 2], share) for share in (0.25, 0.5, 0.95, 1.0)] == [1, 2, 4, 4]


@pytest.mark.parametrize(
    ("wheel", "expected"),
    [
        ("peft-0.21.2-py3-none-any.whl", True),
        ("six-1.17.0-py2.py3-none-any.whl", True),
        ("tokenizers-0.23.3-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("future-1.0-cp313-abi3-manylinux_2_17_x86_64.whl", False),
        ("regex-2026.1-cp312-cp312-manylinux_2_17_x86_64.whl", True),
        ("regex-2026.1-cp311-cp311-manylinux_2_17_x86_64.whl", False),
    ],
)
def test_wheels_that_fit_python_3_12(wheel: str, expected: bool) -> None:
    assert start.fits(wheel, (3, 12)) is expected


@pytest.mark.parametrize(("version", "fits"), [("2.11.0+cu130", True), ("3.0", True), ("2.10.1", False), ("", False)])
def test_torch_must_be_new_enough(version: str, fits: bool) -> None:
    if fits:
        start.check_torch(version)
        return
    with pytest.raises(SystemExit, match=r"torch must be 2\.11 or newer"):
        start.check_torch(version)


def test_smaller_variants_keep_the_layers_as_long_as_possible() -> None:
    case = cases.measured_speed(gpu=True)["lora"]
    first = [(one.sizes["num_hidden_layers"], one.checkpointing, one.micro) for one in checks.smaller(case)]
    assert first[:7] == [
        (32, False, 4),
        (32, False, 2),
        (32, False, 1),
        (32, True, 4),
        (32, True, 2),
        (32, True, 1),
        (24, False, 4),
    ]


def test_cases_are_json_values() -> None:
    for gpu in (False, True):
        wanted = [*cases.short_trainings(gpu=gpu), *cases.measured_memory(gpu=gpu), cases.resumed(gpu=gpu)]
        assert [cases.Case.from_json(json.loads(json.dumps(case.as_json()))) for case in wanted] == wanted
