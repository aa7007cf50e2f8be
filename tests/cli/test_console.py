import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from sparring import Progress
from sparring.cli import console
from sparring.cli.common import print_json, value_of
from sparring.evaluation import EvaluationProgress
from sparring.records import Accuracy
from sparring.runs import progress
from sparring.training import TrainingProgress


def news(step, held_out=None, best=False, left=75.0):
    return TrainingProgress(Progress(step, 10, 3), {"ce": 1.25, "kl": 0.5}, 1234.4, left, held_out, best)


@pytest.fixture
def captured(monkeypatch):
    """What a console on standard error shows; `terminal` decides what kind it is."""

    def open_as(terminal):
        text = io.StringIO()
        made = Console(file=text, force_terminal=terminal, width=200)
        monkeypatch.setattr(console, "Console", lambda stderr: made)
        monkeypatch.setattr(progress, "Console", lambda stderr: made)
        return text

    return open_as


def test_plain_lines_come_once_an_epoch(captured):
    text = captured(False)
    with progress.training() as (show, _):
        for step in range(1, 11):
            show(news(step))
        show(news(10, {"clean": 0.9, "robust": 0.5}, best=True))
    assert text.getvalue() == (
        "epoch 1/3  step 10/30  1,234 images/s  1:15 left  ce 1.250  kl 0.500  "
        "held-out clean 90.0 %  robust 50.0 %  best\n"
    )


def test_long_epochs_show_a_sign_of_life(captured, monkeypatch):
    text = captured(False)
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with progress.training() as (show, _):
        show(news(1))
        show(news(2))
    assert text.getvalue().count("images/s") == 2


def test_a_terminal_shows_a_live_bar_and_keeps_the_epochs(captured, monkeypatch):
    monkeypatch.setattr(progress, "REDRAWN_SECONDS", 0.0)
    text = captured(True)
    with progress.training() as (show, _):
        show(news(10))
        show(news(10, {"clean": 0.9, "robust": 0.5}))
        show(news(11, left=float("inf")))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "held-out clean 90.0 %  robust 50.0 %" in plain
    assert "epoch 2/3  step 11/30" in plain
    assert "? left" in plain


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terms_of_most_steps_are_not_looked_at(captured, monkeypatch, terminal):
    """On a GPU a look waits until the step is done."""
    looks = []

    class Terms(dict):
        def items(self):
            looks.append(1)
            return super().items()

    monkeypatch.setattr(progress, "REDRAWN_SECONDS", 1e9)
    captured(terminal)
    with progress.training() as (show, _):
        for step in range(1, 10):
            show(replace(news(step), terms=Terms(ce=1.0)))
    assert len(looks) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_resumed_run_says_so_first(captured, terminal):
    text = captured(terminal)
    with progress.training() as (show, _):
        show(news(8))
        show(news(9))
    assert text.getvalue().count("going on after step 7") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_shows_how_far_it_is(captured, terminal):
    text = captured(terminal)
    with console.evaluating() as show:
        show("best", EvaluationProgress("pgd", "pgd", 5, 10, np.array([True, False]), 61.0))
        show("last", EvaluationProgress("pgd", "pgd", 10, 10, np.array([True, False]), 0.0, stage_done=True))
    assert ("best" in text.getvalue()) == terminal, "lines come at the end of an attack, or after a while"
    assert "last" in text.getvalue()
    assert "1 of 2 robust" in text.getvalue()
    assert ("1:01 left in all" in text.getvalue()) == terminal


def test_the_table_has_a_row_for_each_attack_and_a_column_for_each_set_of_weights():
    best = {"clean": Accuracy(9, 10), "pgd": Accuracy(5, 10)}
    last = {"clean": Accuracy(8, 10), "pgd": Accuracy(4, 10)}
    tables = {"best": best, "last": last}
    text = io.StringIO()
    Console(file=text, width=100).print(console.accuracy_table(tables))
    assert re.search(r"clean .*90\.00 % \[59\.6, 98\.2\].*80\.00 %", text.getvalue())
    assert re.search(r"pgd .*50\.00 % .*40\.00 %", text.getvalue())
    assert "accuracy on 10 images with its 95 % Wilson interval" in text.getvalue()


def test_names_with_brackets_are_printed_whole():
    table = console.accuracy_table({"run[/x]": {"clean": Accuracy(9, 10), "pgd[l2]": Accuracy(5, 10)}})
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    assert "run[/x]" in text.getvalue() and "pgd[l2]" in text.getvalue()


def test_the_last_of_two_values_of_a_flag_counts():
    assert value_of("--recipe", ["--recipe", "a", "--recipe=b"]) == "b"
    assert value_of("--recipe", ["--recipe=b", "--recipe", "a", "--out", "x"]) == "a"
    assert value_of("--recipe", ["--out", "x", "--recipe"]) is None


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    print_json({"low": float("nan"), "parts": [1.5, float("inf")]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"low": None, "parts": [1.5, None]}


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (75, "1:15"), (3675, "1:01:15"), (float("inf"), "?")])
def test_durations_read_as_clocks_do(seconds, shown):
    assert console.duration(seconds) == shown


def test_training_goes_on_when_nobody_listens_any_more(captured, monkeypatch):
    """As in `sparring train quickstart 2>&1 | head -3`."""
    captured(False)
    calls = []

    def gone(self, news):
        calls.append(news)
        raise SystemExit(1)

    monkeypatch.setattr(progress._Lines, "show", gone)
    with progress.training() as (show, _):
        show(news(1))
        show(news(2))
    assert len(calls) == 1
