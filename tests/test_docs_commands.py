"""Every command and every Python block of the documents, from the text itself.

Wholly run are `list`, `show`, `compare`, `report`, the Python blocks, and training and evaluation of `quickstart`,
smaller than the text says. Every other command runs up to where the long work begins: its options are parsed, its
recipe, study, model and run are found, and `LONG` says what it then calls. A block that is not run says why in the line
before it: `<!-- not run: it needs root -->`.
"""

import re
import shlex
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from test_docs import PAGES, ROOT

import sparring.runs.own  # noqa: F401 - else it would be imported while a test has replaced the functions that it imports
from sparring import Square, TensorData
from sparring.cli import run
from sparring.core.types import pixels
from sparring.data import Digits
from sparring.models import small_cnn
from sparring.recipes import entries, find
from sparring.records import EvaluationResult, RunFolder

pytestmark = pytest.mark.slow

LONG = {
    "train": ("sparring.runs.fit.fit",),
    "evaluate": (
        *("sparring.runs.load.evaluate_run", "sparring.runs.load.evaluate_models"),
        *("sparring.runs.certified.certify_run", "sparring.runs.load.load_model"),
    ),
    "audit": ("sparring.runs.load.load_model",),
    "analyze": ("sparring.analysis.runs.open_run",),
    "study": ("sparring.studies.running.run_study", "sparring.cli.study._status", "sparring.cli.slurm.submit"),
    "bench": ("sparring.bench.bench",),
    "data": ("sparring.data.shrink_pictures",),
    "export": ("sparring.runs.export.export",),
}
LAUNCHERS = ("torchrun", "srun")  # what follows their own options is a command of ours
WHOLE = ("list", "show", "compare", "doctor", "--version", "report")
MARK = re.compile(r"<!-- not run: \S.+ -->\n\Z")


class Reached(Exception):  # noqa: N818 - it is no error: the command came as far as it should
    """What a command calls when its long work begins."""


def shown(language):
    """(page, code) of each block that is not marked, in order."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if not MARK.search(text[: block.start()]):
                yield page, block[1]


def commands():
    """The commands of all pages, each once, as words."""
    lines = [shlex.split(line, comments=True) for _, code in shown("sh") for line in code.splitlines() if line.strip()]
    found = [words[words.index("sparring") :] if words[0] in LAUNCHERS else words for words in lines if words]
    return list({shlex.join(words): words for words in found}.values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the commands find in the present folder: runs by the names of the text, a model and test images."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "mymodels.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    x, y = torch.rand(20, 1, 8, 8).numpy(), np.arange(20) % 10
    np.savez(folder / "test.npz", x_test=x, y_test=y)
    robust = dict.fromkeys(("clean", "pgd"), y % 3 > 0)
    for name in {name for page in PAGES for name in re.findall(r"runs/(\w+)", page.read_text())}:
        made = RunFolder(folder / "runs" / name)
        made.begin(find(name if name in entries() else "quickstart")().plain())
        made.write_flags("best", EvaluationResult(robust, y, tuple("0123456789")))
    (folder / "results" / "tricks-cpu").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "tricks-cpu" / "study.json", folder / "results" / "tricks-cpu")
    return folder


@pytest.fixture
def folder(whole, monkeypatch):
    monkeypatch.chdir(whole)
    monkeypatch.syspath_prepend(str(whole))
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)  # of another folder
    return whole


def stop_at(monkeypatch, target):
    def reached(*args, **options):
        raise Reached(target)

    monkeypatch.setattr(target, reached)


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_every_command_runs_or_comes_to_its_long_work(words, folder, monkeypatch, capsys):
    program, command, *rest = words
    if program == "make":
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        return
    assert program == "sparring", "mark the block as not run, and why"
    if command in WHOLE:
        assert run([command, *rest]) == 0, capsys.readouterr().err
        return
    for target in LONG[command]:
        stop_at(monkeypatch, target)
    with pytest.raises(Reached):
        assert run([command, *rest]) == 0, capsys.readouterr().err


def test_quickstart_is_trained_and_evaluated_as_the_readme_says(tmp_path, monkeypatch, capsys):
    """Wholly, with fewer epochs, channels, steps, queries and images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparring.evaluation.named.Square", lambda threat, queries: Square(threat, 100))
    given = [words[1:] for words in commands()]
    small = ["--epochs", "1", "--model.width", "4", "--method.attack.steps", "1", "--evaluation.examples", "20"]
    small += ["--evaluation.adversaries.pgd-50-10.attack.times", "1"]
    assert ["train", "quickstart"] in given
    assert run(["train", "quickstart", *small]) == 0
    long = {"--autoattack", "--suite", "--certify", "--transfer-from"}
    ways = [each for each in given if each[:2] == ["evaluate", "runs/quickstart"] and not long & set(each)]
    assert len(ways) >= 2
    for each in ways:
        assert run(each) == 0, capsys.readouterr().err


def test_a_block_is_left_out_only_with_a_reason():
    assert MARK.search("text\n<!-- not run: it needs root -->\n")
    for unmarked in ("text\n", "<!-- not run: -->\n", "<!-- not run: why -->\n\n"):
        assert not MARK.search(unmarked)


# -- Python


def reader(folder):
    """What the blocks call by name: `model`, `images`, `x`, `y`, `batches` and the like are the reader's own."""
    test = Digits().load()[1]
    few = TensorData(test.x[:120], test.y[:120], test.classes)
    x, y = pixels(few.x), few.y
    rows = torch.arange(24).split(8)
    return {
        "model": small_cnn(10, (1, 8, 8), width=2).eval(),
        "x": x[:24],
        "y": y[:24],
        "batches": [(x[i], y[i], i) for i in rows],
        "device": "cpu",
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:24], y[:24]), batch_size=8),
        "images": x[:24],
        "labels": y[:24],
        "training_images": few,
        "test_images": few[:8],
        "__name__": "__main__",
    }


ELSEWHERE = ("README", "attack", "train", "evaluate", "method")  # test_docs.py and, as notebooks, test_tutorials.py
BLOCKS = [(page, code) for page, code in shown("python") if page.stem not in ELSEWHERE]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[f"{page.name}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_every_python_block_of_the_docs_runs(page, code, folder, monkeypatch):
    """A study is made, and not carried out; the last attack of AutoAttack takes 100 queries instead of 5,000."""
    monkeypatch.setattr("sparring.evaluation.auto_attack.Square", partial(Square, queries=100))
    monkeypatch.setattr("sparring.studies.running.run_study", lambda study, *args, **options: study.arms)
    names = reader(folder)
    if "from .." in code:  # a module of the package, as it stands there
        names |= {"__name__": "sparring.objectives.shown", "__package__": "sparring.objectives"}
    exec(compile(code, page.name, "exec"), names)  # noqa: S102
