"""How often a watched training waits for the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.cuda.networks import Transformer
from tests.cuda.synchronizations import count_synchronizations
from torch import Tensor

import gradmedic
from gradmedic.torch.probes import schedule
from gradmedic.torch.watch import Watch

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("gpu")]

SETTLING_STEPS, STEPS, LOG_FREQ = 30, 40, 5


class Training:
    """A training that does not wait for the device by itself."""

    def __init__(self, device: torch.device, *, autocast: bool = False) -> None:
        self.model = Transformer().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self._inputs = torch.randn(4, 16, 8, device=device)
        self._autocast = autocast

    def step(self) -> Tensor:
        """Train a step and return its loss."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
            loss: Tensor = self.model(self._inputs).float().square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def test_waiting_is_counted(gpu: torch.device) -> None:
    """A number that is read, a copy, an event and the device count once each; work that is queued does not count."""
    numbers = torch.ones(8, device=gpu)
    with count_synchronizations() as count:
        doubled = numbers * 2
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        assert count.waits == 0
        doubled.sum().item()
        assert count.waits == 1
        event.synchronize()
        assert count.waits == 2
        torch.cuda.synchronize()
        assert count.waits == 3


@pytest.mark.parametrize("autocast", [False, True])
def test_only_sampled_steps_wait_and_once_at_most(
    gpu: torch.device, autocast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is not sampled does not wait for the device; one that is waits once at most, probes included."""
    monkeypatch.setattr(schedule, "SHARE", float("inf"))  # so that probes are among the steps
    training = Training(gpu, autocast=autocast)
    run = gradmedic.init(mode="offline", dir=str(tmp_path), silent=True, project="cuda", log_freq=LOG_FREQ)
    waits: dict[bool, list[int]] = {True: [], False: []}
    probed = 0
    try:
        run.watch(training.model, training.optimizer)
        for _ in range(SETTLING_STEPS):
            run.log(loss=training.step())
        for _ in range(STEPS):
            is_sampled = run._sampler.is_sampling
            (watch,) = run._instrumentations
            assert isinstance(watch, Watch)
            probed += watch._probing._schedule.is_probing
            with count_synchronizations() as count:
                run.log(loss=training.step())
            waits[is_sampled].append(count.waits)
    finally:
        run.finish(timeout=30)
    assert len(waits[True]) == STEPS // LOG_FREQ
    assert probed > 0
    assert max(waits[True]) <= 1
    assert max(waits[False]) == 0


def test_the_driver_sees_no_further_synchronizations(gpu: torch.device, tmp_path: Path) -> None:
    """On steps that are not sampled, the profiler counts as many calls that wait as without a watch."""

    def count_calls(training: Training, run: gradmedic.Run | None) -> int:
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(LOG_FREQ - 1):
                loss = training.step()
                if run is not None:
                    assert not run._sampler.is_sampling
                    run.log(loss=loss)
        waiting = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
        return sum(event.count for event in profile.key_averages() if event.key in waiting)

    plain = Training(gpu)
    for _ in range(SETTLING_STEPS):
        plain.step()
    expected = count_calls(plain, None)
    training = Training(gpu)
    run = gradmedic.init(mode="offline", dir=str(tmp_path), silent=True, project="cuda", log_freq=LOG_FREQ)
    try:
        run.watch(training.model, training.optimizer)
        for _ in range(SETTLING_STEPS + 1):
            run.log(loss=training.step())
        assert count_calls(training, run) == expected
    finally:
        run.finish(timeout=30)
