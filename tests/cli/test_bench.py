"""The benchmark of the shell measures like beside like."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparring.acceleration import computes_bf16
from sparring.bench import ATTACK, bench, ceilings, gflop_of_forward, in_turns, subject
from sparring.cli import run
from sparring.models import preact_resnet18

pytestmark = pytest.mark.slow


def test_sides_take_turns_and_are_timed_as_often():
    seen = []

    def call(name):
        return lambda: seen.append(name)

    taken, _ = in_turns({name: call(name) for name in "abc"}, 3, torch.device("cpu"))
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(seen[3:]) == "abcbcacab", "after a round that does not count"


def test_a_forward_pass_of_the_usual_net_takes_1_11_gflop():
    assert gflop_of_forward(preact_resnet18(), torch.rand(1, 3, 32, 32)) == pytest.approx(1.11, abs=0.01)


def test_all_sides_do_the_same_work_with_the_same_effect():
    timings = bench(width=4, batch=16, rounds=1)
    assert [(t.work, t.side) for t in timings] == [
        (work, side) for work in ("attack", "training step") for side in ("eager fp32", "fast")
    ]
    for plain, fast in (timings[:2], timings[2:]):
        assert abs(plain.robust - fast.robust) <= 2 / 16
        assert plain.gflop == fast.gflop
        assert plain.gflops == pytest.approx(plain.gflop * 16 / plain.median)
    assert timings[2].gflop / timings[0].gflop == pytest.approx((2 * ATTACK.steps + 3) / (2 * ATTACK.steps))


def test_the_shell_prints_a_table_or_one_object(capsys, monkeypatch):
    monkeypatch.setattr("sparring.bench.ceilings", lambda device: {"convolution bf16": 100.0})
    monkeypatch.setattr("sparring.bench.ATTACK", replace(ATTACK, steps=1))
    monkeypatch.setattr("sparring.bench.subject", partial(subject, steps=2))
    args = ["bench", "--width", "4", "--batch", "8", "--rounds", "1", "--device", "cpu"]
    assert run([*args, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["side"] for row in printed["timings"]] == ["eager fp32", "fast"] * 2
    assert printed["ceilings"] == {"convolution bf16": 100.0}
    assert run(args) == 0
    out = capsys.readouterr().out
    assert "training" in out
    assert "100 GFLOP/s" in out


def test_ceilings_are_positive():
    found = ceilings("cpu", rounds=1)
    kinds = ("fp32", "bf16") if computes_bf16(torch.device("cpu")) else ("fp32",)
    assert set(found) == {f"{what} {kind}" for what in ("convolution", "matrix product") for kind in kinds}
    assert min(found.values()) > 0
