from __future__ import annotations

import pytest
import torch

from polyalign.utils import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def not_measured_yet():
    precision._cpu_gains.cache_clear()
    yield
    precision._cpu_gains.cache_clear()


def measure(monkeypatch, fp32: float, bf16: float) -> list[torch.dtype]:
    asked = []

    def seconds(dtype):
        asked.append(dtype)
        return {torch.float32: fp32, torch.bfloat16: bf16}[dtype]

    monkeypatch.setattr(precision, "seconds", seconds)
    return asked


@pytest.mark.parametrize(("fp32", "bf16", "gains"), [(2.0, 1.0, True), (1.1, 1.0, False), (1.0, 3.0, False)])
def test_a_processor_infers_in_bf16_when_that_is_measured_to_be_faster(fp32, bf16, gains, monkeypatch):
    asked = measure(monkeypatch, fp32, bf16)
    assert precision.infers_in_bf16("auto", CPU) is gains
    assert precision.infers_in_bf16("auto", CPU) is gains
    assert asked == [torch.float32, torch.bfloat16], "once is enough"


def test_what_is_asked_for_by_name_is_not_measured(monkeypatch):
    asked = measure(monkeypatch, 1.0, 1.0)
    assert [precision.infers_in_bf16(name, CPU) for name in ("fp32", "bf16")] == [False, True]
    assert [precision.trains_in_bf16(name, CPU) for name in ("fp32", "bf16")] == [False, True]
    assert not asked


@pytest.mark.parametrize("has", [True, False])
def test_on_a_gpu_it_is_whether_its_hardware_has_it(has, monkeypatch):
    # PyTorch emulates bf16 on older GPUs and calls it supported unless told not to.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or bool(including_emulation)
    )
    gpu = torch.device("cuda")
    assert precision.infers_in_bf16("auto", gpu) is has
    assert precision.trains_in_bf16("auto", gpu) is has
    assert precision.trains_in_bf16("bf16", gpu)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_training_elsewhere_stays_in_float32_whatever_gpu_there_is(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert not precision.trains_in_bf16("auto", torch.device(device))
    assert device == "cpu" or not precision.infers_in_bf16("auto", torch.device(device))


def test_the_measurement_takes_no_time_to_speak_of():
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < precision.seconds(dtype) < 1
