"""Settings of a run apart from its recipe: number formats, CUDA graphs, determinism."""

from dataclasses import replace

import pytest
import torch
from helpers import stop_at
from safetensors.torch import load_file
from torch import nn

from sparring import AWP, Build, Linf, OptimizerStep, UserError
from sparring.core.modes import float32_format
from sparring.core.schedules import PiecewiseConstant
from sparring.core.types import Progress, at
from sparring.data import Digits, ProgressiveResizing, Subset
from sparring.models import preact_resnet18
from sparring.records.run_folder import RunFolder
from sparring.runs.compute import ComputeSettings
from sparring.runs.fit import fit
from sparring.training import Free
from sparring.training.hooks import Interrupted
from sparring.training.updates import MixedPrecision, mixed_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEW = Subset(Digits(), 400, 40)


def test_auto_becomes_what_the_device_does(monkeypatch):
    assert ComputeSettings().resolved(CPU).update_precision == "fp32"
    monkeypatch.setattr("sparring.acceleration.backend.computes_bf16", lambda device: True)
    found = ComputeSettings(capture=True).resolved(CUDA)
    assert (found.precision, found.compile, found.update_precision, found.capture) == ("bf16", "off", "tf32", True)
    assert ComputeSettings(update_precision="bf16").resolved(CUDA).update_precision == "bf16"


def test_the_format_of_float32_on_cuda_follows_torch():
    assert float32_format(CUDA) == "tf32", "convolutions are, unless one says otherwise"
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        assert float32_format(CUDA) == "fp32"
        torch.set_float32_matmul_precision("high")
        assert float32_format(CUDA) == "tf32"
    finally:
        torch.backends.cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("settings", "device", "lines"),
    [
        ({"precision": "fp32"}, CPU, []),
        ({"precision": "fp32", "update_precision": "tf32"}, CUDA, ["updates in TF32", "--deterministic"]),
        ({"precision": "fp32", "update_precision": "fp32", "deterministic": True}, CUDA, []),
        ({"precision": "fp32", "update_precision": "bf16"}, CPU, ["has not been shown"]),
    ],
)
def test_what_is_computed_less_exactly_is_said(settings, device, lines):
    found = list(ComputeSettings(**settings).describe(device))
    assert len(found) == len(lines)
    assert all(part in line for part, line in zip(lines, found, strict=True))


def test_a_run_of_an_older_version_has_the_settings_of_its_time():
    kept = ComputeSettings().kept({"precision": "bf16", "compile": "off"}, "runs/a")
    assert kept == ComputeSettings("bf16", "off")


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="update_precision = 'half' is not one of"):
        ComputeSettings(update_precision="half")
    with pytest.raises(UserError, match="compile = 'maybe' is not one of"):
        ComputeSettings(compile="maybe")


# -- an update in bf16


def closure_of(model, x):
    seen = []

    def closure():
        out = model(x)
        seen.append(out.dtype)
        return {"loss": out.square().mean()}

    return closure, seen


def test_an_update_in_bf16_keeps_weights_and_gradients_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    closure, seen = closure_of(model, torch.rand(8, 4))
    before = [p.clone() for p in model.parameters()]
    terms = MixedPrecision(OptimizerStep())(model, optimizer, closure)
    assert seen == [torch.bfloat16]
    assert terms["loss"].dtype == torch.float32
    assert {p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters()} == {torch.float32}
    exact = nn.Linear(4, 2)
    exact.load_state_dict(dict(zip(("weight", "bias"), before, strict=True)))
    closure, _ = closure_of(exact, torch.rand(8, 4, generator=torch.Generator().manual_seed(0)))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_schedule_of_updates_is_a_schedule_in_bf16():
    schedule = mixed_precision(PiecewiseConstant(((0, OptimizerStep()), (1, AWP(0.01)))))
    assert at(schedule, Progress(0, 10, 2)) == MixedPrecision(OptimizerStep())
    assert at(schedule, Progress(10, 10, 2)) == MixedPrecision(AWP(0.01))
    assert mixed_precision(AWP(0.01)) == MixedPrecision(AWP(0.01))


# -- in a run


@pytest.mark.slow
def test_a_run_keeps_how_it_computes(tiny, tmp_path):
    short, said = replace(tiny, epochs=1), []
    how = {"update_precision": "bf16", "deterministic": True}
    with pytest.raises(Interrupted):
        fit(short, tmp_path / "a", **how, on_progress=stop_at(2), log=said.append)
    assert "updates in bf16" in said[0]
    begun = RunFolder(tmp_path / "a").backend()
    assert begun["update_precision"] == "bf16"
    assert begun["deterministic"] is True
    assert isinstance(begun["notes"], list)
    with pytest.raises(UserError, match="begun with --update-precision bf16, and fp32 would round otherwise"):
        fit(short, tmp_path / "a", update_precision="fp32")
    with pytest.raises(UserError, match="begun without --capture, and this would round otherwise"):
        fit(short, tmp_path / "a", capture=True)
    resumed, whole = fit(short, tmp_path / "a"), fit(short, tmp_path / "b", **how)
    exact = fit(short, tmp_path / "c")
    weights = [run.weights("last").read_bytes() for run in (resumed, whole, exact)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2], "an update in bf16 rounds otherwise"


@pytest.mark.slow
def test_a_deterministic_run_restores_the_settings_of_torch_and_changes_nothing_on_a_cpu(tiny, tmp_path):
    from torch._inductor import config

    seen = []

    def look(news):
        seen.append((torch.are_deterministic_algorithms_enabled(), config.deterministic))

    short = replace(tiny, epochs=1)
    found = fit(short, tmp_path / "a", deterministic=True, on_progress=look)
    assert set(seen) == {(True, True)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert config.deterministic is False
    assert found.weights("last").read_bytes() == fit(short, tmp_path / "b").weights("last").read_bytes()


def test_an_operation_that_cannot_be_deterministic_gets_a_sentence():
    settings = ComputeSettings(deterministic=True)
    with (
        pytest.raises(UserError, match="with --deterministic: cumsum_cuda_kernel has no deterministic implementation"),
        settings.applied(CPU),
    ):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ..")
    with pytest.raises(RuntimeError, match="another"), settings.applied(CPU):
        raise RuntimeError("another")


def test_cublas_is_set_before_it_starts(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    settings = ComputeSettings(deterministic=True)
    with settings.applied(CUDA):
        import os

        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="set CUBLAS_WORKSPACE_CONFIG=:4096:8"), settings.applied(CUDA):
        pass


def test_full_precision_of_the_update_is_set_on_cuda_alone():
    with ComputeSettings(update_precision="fp32").applied(CUDA):
        assert float32_format(CUDA) == "fp32"
    assert float32_format(CUDA) == "tf32"
    with ComputeSettings(update_precision="fp32").applied(CPU):
        assert float32_format(CUDA) == "tf32"


@pytest.mark.slow
def test_recomputation_changes_no_bits_and_may_be_given_to_a_run_that_was_begun_without(tiny, tmp_path):
    short = replace(tiny, epochs=1, model=Build(preact_resnet18, width=0.03), data=FEW, batch_size=110)
    plain = fit(short, tmp_path / "plain")
    with pytest.raises(Interrupted):
        fit(short, tmp_path / "begun", on_progress=stop_at(1))
    again = fit(short, tmp_path / "begun", recompute=True)
    assert again.weights("last").read_bytes() == plain.weights("last").read_bytes()
    assert again.backend()["recompute"]
    with pytest.raises(UserError, match="repeated blocks"):
        fit(tiny, tmp_path / "none", recompute=True)


@pytest.mark.slow
def test_micro_batches_are_kept_by_a_run_and_give_its_weights_up_to_rounding(tiny, tmp_path):
    whole, said = fit(replace(tiny, epochs=1), tmp_path / "whole"), []
    with pytest.raises(Interrupted):
        fit(replace(tiny, epochs=1), tmp_path / "parts", accumulate=3, on_progress=stop_at(2), log=said.append)
    assert "batches of 256 images are divided between 3 micro-batches" in said[0]
    parts = fit(replace(tiny, epochs=1), tmp_path / "parts")
    one, other = (load_file(run.weights("last")) for run in (whole, parts))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    with pytest.raises(UserError, match="accumulate = 0"):
        ComputeSettings(accumulate=0)
    with pytest.raises(UserError, match="a batch of 2 images cannot be divided into 3 micro-batches"):
        fit(replace(tiny, batch_size=2), tmp_path / "few", accumulate=3)
    with pytest.raises(UserError, match="Free takes an update of the weights in every pass"):
        fit(replace(tiny, method=Free(Linf(0.1), 2)), tmp_path / "free", accumulate=2)


@pytest.mark.slow
def test_images_grow_from_epoch_to_epoch_and_a_resumed_run_goes_on_at_the_same_size(tiny, tmp_path):
    sizes = ProgressiveResizing(((0, 4), (1, 8)))
    growing = replace(tiny, image_size=sizes, epochs=2, model=Build(preact_resnet18, width=0.03), data=FEW)
    growing = replace(growing, batch_size=70)
    whole = fit(growing, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(growing, tmp_path / "stopped", on_progress=stop_at(3))
    again = fit(growing, tmp_path / "stopped")
    assert again.weights("last").read_bytes() == whole.weights("last").read_bytes()
    fixed = fit(replace(growing, image_size=None), tmp_path / "fixed")
    assert fixed.weights("last").read_bytes() != whole.weights("last").read_bytes()
    with pytest.raises(UserError, match=r"does not take images of 4 pixels.*leave that size out"):
        fit(replace(growing, model=tiny.model), tmp_path / "one size")
