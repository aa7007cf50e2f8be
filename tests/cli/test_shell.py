import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from forked import commanded, ended

from sparring.attacks import APGD, FAB, Square
from sparring.cli import run
from sparring.evaluation import auto_attack
from sparring.records.run_folder import read_evaluated
from sparring.runs import environment
from sparring.training.hooks import MetricsHook

pytestmark = pytest.mark.slow

SMALL = [
    "--epochs",
    "2",
    "--model.width",
    "8",
    "--evaluation.examples",
    "30",
    "--batch-size",
    "128",
    "--method.attack.steps",
    "2",
]


def shell(*args, **options):
    command = [sys.executable, "-c", "from sparring.cli import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module", autouse=True)
def brief():
    """AutoAttack of ten steps, and 100 queries instead of 5,000 at its end: its strength is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for attack, short in ((APGD, {"steps": 10}), (FAB, {"steps": 10}), (Square, {"queries": 100})):
            patch.setattr(auto_attack, attack.__name__, partial(attack, **short))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "r"
    assert run(["train", "quickstart", "--out", str(folder), *SMALL]) == 0
    return folder


# -- what needs no torch


@pytest.mark.parametrize("args", [["--help"], ["list"], ["train", "--help"], ["evaluate", "--help"], ["--version"]])
def test_help_and_list_import_no_torch(args):
    code = f"import sys; from sparring.cli import run; run({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_answers_in_under_a_second():
    began = time.monotonic()
    assert shell("--help").returncode == 0
    assert time.monotonic() - began < 1


def test_list_names_every_recipe_with_what_it_is(capsys):
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  quickstart +PGD-AT of a small CNN", out, re.MULTILINE)
    assert run(["list", "--json"]) == 0
    assert "fashion_pgd" in json.loads(capsys.readouterr().out)


def test_show_prints_a_recipe_in_full(capsys):
    assert run(["show", "cifar10_wrn34_10_trades"]) == 0
    out = capsys.readouterr().out
    assert "depth=34" in out
    assert "53.08 %" in out
    assert run(["show", "quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["$"] == "Recipe"


# -- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian", "quickstart"], "no command 'trian': did you mean train?"),
        (["train", "quickstrat"], "no recipe 'quickstrat': did you mean quickstart?"),
        (["train"], "RECIPE is missing"),
        (["evaluate"], "TARGET is missing"),
        (["list", "--jsn"], "unknown argument '--jsn'"),
        (["show", "quickstart", "--jsn"], "unknown argument"),
        (["evaluate", "nowhere"], "there is no file nowhere"),
        (["train", "quickstart", "--eps", "8"], "did you mean 8/255?"),
        (["train", "quickstart", "--epochs", "0"], "epochs = 0 is no whole number from 1 on"),
        (["train", "quickstart", "--device", "tpu"], "device 'tpu' is not available here"),
        (["train", "quickstart", "--model.activation", "rleu"], "did you mean relu"),
        (["train", "quickstart", "--optimizer.momentum", "0"], "Nesterov momentum needs a momentum above 0"),
        (["train", "quickstart", "--lr.top", "1"], "top = 1 is not in (0, 1)"),
        (["train", "quickstart", "--save-steps", "0"], "steps at least 1"),
        (["train", "quickstart", "--evaluation.batch-size", "0"], "needs at least one example"),
        (["train", "quickstart", "--method.attack.steps", "0"], "steps = 0 is no whole number from 1 on"),
        (["train", "fashion_pgd", "--data.folder", "/nowhere"], "there is no train-images-idx3-ubyte.gz in /nowhere"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(args) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method.attack.step", "3"], "--method.attack.steps"),  # the nearest name
        (["--method.attack.steps", "many"], "invalid literal for int"),
        (["--lr.peak", "much"], "is no number"),
    ],
)
def test_an_unknown_field_or_a_wrong_type_is_explained(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(["train", "quickstart", *args])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert not list(tmp_path.iterdir())


# -- the whole way


def test_every_scalar_of_a_recipe_is_a_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        run(["train", "quickstart", "--help"])
    out = capsys.readouterr().out
    for flag in (
        "--eps",
        "--epochs",
        "--method.attack.steps",
        "--lr.peak",
        "--optimizer.weight-decay",
        "--model.width",
    ):
        assert flag in out
    assert "(default: 0.15)" in out


def test_flags_reach_the_recipe_and_a_parameter_reaches_all_that_it_decides(trained, tmp_path, capsys):
    plain = json.loads((trained / "recipe.json").read_text())
    assert plain["epochs"] == 2
    assert plain["model"]["width"] == 8
    assert plain["method"]["attack"]["steps"] == 2
    flags = [*SMALL, "--eps", "8/255", "--method.attack.step-size", "0.0375", "--epochs", "1"]
    assert run(["train", "quickstart", *flags, "--out", str(tmp_path / "r")]) == 0
    plain = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert plain["method"]["attack"]["threat"]["eps"] == plain["selection"]["threat"]["eps"] == 8 / 255
    assert plain["selection"]["step_size"] == 2 / 255, "follows eps"
    assert plain["method"]["attack"]["step_size"] == 0.0375, "was given, although it is the default of another eps"


def test_training_tells_what_comes_next(trained, capsys):
    assert run(["train", "quickstart", "--out", str(trained), *SMALL, "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert f"next: sparring evaluate {trained}" in captured.out
    assert re.search(r"epoch 1/2  step 10/20 .* images/s .* left  ce \d.* held-out clean .* robust", captured.err)


def test_a_finished_run_is_refused_with_the_way_out(trained, capsys):
    assert run(["train", "quickstart", "--out", str(trained), *SMALL]) == 2
    assert "finished run: overwrite it" in capsys.readouterr().err


def test_evaluate_prints_one_json_object_and_nothing_else(trained):
    done = shell("evaluate", str(trained), "--json", "--evaluation.adversaries.pgd-50-10.attack.times", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"best", "last"}
    for table in found.values():
        assert set(table) == {"clean", "fgsm", "pgd-50-10", "summary"}
        assert set(table["clean"]) == {"accuracy", "low", "high", "examples"}
        assert table["clean"]["examples"] == 30
        assert table["clean"]["low"] <= table["clean"]["accuracy"] <= table["clean"]["high"]
        assert table["pgd-50-10"]["accuracy"] <= table["clean"]["accuracy"]
    written = json.loads((trained / "evaluation.json").read_text())
    how, environment = written.pop("how"), written.pop("environment")
    assert written == found
    assert environment["command"][1:3] == ["evaluate", str(trained)]
    assert (trained / "report.html").exists() and (trained / "model-card.md").exists()
    assert how["evaluation"]["adversaries"]["pgd-50-10"]["attack"]["times"] == 1, "it says what was changed"


def test_evaluate_prints_a_table_for_people(trained, capsys):
    assert run(["evaluate", str(trained), "--evaluation.adversaries.pgd-50-10.attack.times", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"clean .* \d+\.\d+ % \[\d+\.\d+, \d+\.\d+\]", out)
    assert str(trained) in out.replace("\n", "")
    assert "pgd-50-10: WhiteBox(attack=Restarts(attack=PGD(threat=Linf(eps=0.15), steps=50" in out


def test_evaluate_takes_weights_alone(trained, tmp_path, capsys):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes((trained / "best.safetensors").read_bytes())
    assert run(["evaluate", str(weights), "--json", "--evaluation.adversaries.pgd-50-10.attack.times", "1"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"weights"}
    assert run(["evaluate", str(weights), "--recipe", "fashion_pgdd"]) == 2
    assert "did you mean fashion_pgd" in capsys.readouterr().err


def test_train_prints_json_if_asked_for(tmp_path, capsys):
    assert run(["train", "quickstart", "--json", "--out", str(tmp_path / "r"), *SMALL, "--epochs", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"]
    assert found["step"] == 10
    assert set(found["best"]) == {"clean", "robust", "step"}


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    """A real process, a real signal, and then the printed command itself, in this process."""
    args = ["train", "quickstart", "--out", "my run", *SMALL, "--epochs", "400", "--overwrite"]
    process = commanded(args, tmp_path / "said", tmp_path)
    metrics = tmp_path / "my run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    code, err = ended(process), (tmp_path / "said").read_text()
    assert code == 130, err
    assert "Traceback" not in err
    again = re.search(r"everything is saved\. Go on with: (sparring .*)", err).group(1)
    assert "'my run'" in again
    assert "--overwrite" not in again
    (checkpoint,) = sorted((tmp_path / "my run" / "checkpoints").iterdir())[-1:]
    step = int(checkpoint.name.removeprefix("step-"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetricsHook, "on_epoch", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert run(shlex.split(again)[1:]) == 130
    assert f"going on after step {step}" in capsys.readouterr().err.splitlines()


# -- AutoAttack, curves, models of others, comparisons, audits

FAST = ["--overwrite", "--evaluation.examples", "12", "--evaluation.adversaries.pgd-50-10.attack.times", "1"]
FAST += ["--weights", "best"]


def test_an_evaluation_does_not_replace_one_on_more_images(trained, capsys):
    once, few = ["--evaluation.adversaries.pgd-50-10.attack.times", "1"], ["--evaluation.examples", "7"]
    assert run(["evaluate", str(trained), *once, "--overwrite"]) == 0
    assert "accuracy on 30 images" in capsys.readouterr().out
    assert run(["evaluate", str(trained), *once, *few]) == 2
    assert (
        "holds an evaluation on 30 images, and this one is on 7: evaluate as many, or replace it"
        in capsys.readouterr().err
    )
    assert read_evaluated(trained / "evaluation-best.npz").table()["clean"].examples == 30, "nothing was replaced"
    assert run(["evaluate", str(trained), *once, *few, "--overwrite"]) == 0
    assert "accuracy on 7 images" in capsys.readouterr().out
    assert run(["evaluate", str(trained), *once]) == 0, "more images may take the place of fewer"


@pytest.mark.parametrize("damage", ["{", '{"best": {"clean": {"examples": "many"}}}', '{"best": {"clean": 3}}'])
def test_an_evaluation_that_cannot_be_read_is_named_and_can_be_replaced(trained, capsys, damage):
    held = trained / "evaluation.json"
    held.write_text(damage)
    assert run(["evaluate", str(trained), *FAST[1:]]) == 2
    assert re.search(r"evaluation\.json cannot be read .*: delete it, or --overwrite it", capsys.readouterr().err)
    assert run(["evaluate", str(trained), *FAST]) == 0


@pytest.mark.parametrize("command", ["evaluate", "audit"])
@pytest.mark.parametrize("rest", [[], ["--data", "digits", "--threat", "linf:0.1"], ["--model", "resnet18"]])
def test_a_file_of_code_is_no_weights(command, rest, tmp_path, capsys):
    path = tmp_path / "mymodels.py"
    path.write_text("def build(): ...")
    assert run([command, str(path), *rest]) == 2
    said = capsys.readouterr().err
    assert "is a file of Python code, not of weights" in said
    assert "as mymodels:build" in said
    assert "weights_only" not in said


def test_autoattack_and_a_curve_are_a_flag_each(trained, capsys):
    assert run(["evaluate", str(trained), "--autoattack", "standard", "--min-norm", "--keep-images", *FAST]) == 0
    out, err = capsys.readouterr()
    for row in ("clean", "fgsm", "autoattack/apgd-ce", "autoattack/square", "autoattack"):
        assert re.search(rf"│ {row} ", out), row
    assert "worst classes" in out
    assert "broken by" in out
    assert "robust" in err
    assert (trained / "robustness-curve.png").exists()
    assert not list(trained.glob("*.state")), "the state is gone when the result is written"
    found = read_evaluated(trained / "evaluation-best.npz")
    assert found.adversarial["autoattack"].shape == (12, 1, 8, 8)
    assert found.distance.shape == (12,)


def test_an_evaluation_that_was_killed_goes_on_from_the_shell(trained, capsys, monkeypatch):
    monkeypatch.setattr(Square, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    command = ["evaluate", str(trained), "--autoattack", "standard", *FAST]
    assert run(command) == 130
    assert list(trained.glob("evaluation-best.state/*.npz"))
    monkeypatch.undo()
    capsys.readouterr()
    assert run(command) == 0
    assert not list(trained.glob("*.state"))


@pytest.fixture
def theirs(trained, tmp_path, monkeypatch):
    """A module that builds a model, as a user would have it, in the present folder."""
    (tmp_path / "mymodels.py").write_text(
        f"from sparring import load_model\n\n\ndef build():\n    return load_model({str(trained)!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "mymodels:build"
    sys.modules.pop("mymodels", None)


def test_a_model_of_ones_own_is_evaluated_and_compared(theirs, capsys):
    options = ["--data", "digits", "--examples", "12"]
    for eps in ("0.01", "0.2"):
        assert run(["evaluate", theirs, *options, "--threat", f"linf:{eps}", "--out", f"at-{eps}"]) == 0
    assert json.loads(Path("at-0.01/evaluation.json").read_text())["how"]["threat"] == "Linf(eps=0.01)"
    capsys.readouterr()
    assert run(["compare", "at-0.01", "at-0.2", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert pairs["autoattack"]["only_second"] == 0, "a larger eps breaks no fewer"
    assert (pairs["clean"]["alike"], pairs["autoattack"]["alike"]) == (True, False)
    assert run(["compare", "at-0.01", "at-0.2"]) == 0
    said = capsys.readouterr()
    assert re.search(r"autoattack: .* against .*; difference \+.* points", said.out)
    assert "note: autoattack differs in the two: Linf(eps=0.01) by AutoAttack(threat=Linf(eps=0.01)" in said.err
    for which in ("best", "last"):
        Path(which).mkdir()
        shutil.copy("at-0.2/evaluation-model.npz", f"{which}/evaluation-{which}.npz")
    assert run(["compare", "best", "last"]) == 0
    assert "note: of best the best weights were evaluated, and of last the last ones" in capsys.readouterr().err


def test_printed_commands_can_be_pasted(tmp_path, capsys):
    (tmp_path / "a folder").mkdir()
    assert run(["compare", str(tmp_path / "a folder"), "b"]) == 2
    assert f"run sparring evaluate '{tmp_path / 'a folder'}' first" in capsys.readouterr().err
    assert environment._program(Path("/lib/sparring/__main__.py")) == "sparring"
    assert environment._program(Path("/bin/train.py")) == "train.py"


def test_results_of_another_model_are_not_written_to_the_folder_of_a_training(theirs, trained, capsys):
    options = ["--data", "digits", "--eps", "0.1", "--examples", "6", "--out", str(trained)]
    assert run(["evaluate", theirs, *options]) == 2
    assert "is the folder of another training, whose results would be replaced" in capsys.readouterr().err


def test_weights_are_evaluated_by_the_name_of_their_architecture(trained, capsys):
    weights = str(trained / "best.safetensors")
    options = ["--model", "small_cnn:width=8", "--data", "digits", "--threat", "linf:0.1", "--examples", "6", "--json"]
    assert run(["evaluate", weights, *options]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["clean"]["examples"] == 6


QUICK = ["--examples", "20", "--steps", "4", "--queries", "20"]


def test_an_audit_has_a_table_for_people_and_an_exit_status_for_scripts(trained, theirs, capsys):
    code = run(["audit", theirs, "--data", "digits", "--threat", "linf:0.1", *QUICK])
    out = capsys.readouterr().out
    assert re.search(r"│ gradient flow +│ (pass|warn|fail)", out)
    assert (code, "FAILED" in out) in ((0, False), (1, True))
    code = run(["audit", str(trained), "--json", *QUICK])
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == (code == 0)
    assert {check["name"] for check in found["checks"]} > {"randomness", "black box", "transfer"}


def test_an_audit_of_a_masked_model_exits_with_1(theirs, capsys):
    Path("masked.py").write_text(
        "import torch\nfrom mymodels import build as inner\n\n\nclass Masked(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = inner()\n\n"
        "    def forward(self, x):\n        return self.inner(x.detach())\n"
    )
    assert run(["audit", "masked:Masked", "--data", "digits", "--threat", "linf:0.1", *QUICK]) == 1
    assert re.search(r"fail: gradient flow: the forward detaches its input", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "nobody:build", "--data", "digits", "--threat", "linf:0.1"], "nobody:build cannot be found"),
        (["evaluate", "os:getcwd", "--data", "digits"], "--threat linf:8/255"),
        (["evaluate", "os:getcwd", "--data", "digits", "--threat", "linf:0.1"], "gives a str: wanted is a torch.nn"),
        (["evaluate", "os:getcwd", "--data", "digit", "--threat", "linf:0.1"], "gives a str"),
        (["audit", "os:getcwd", "--data", "digits"], "nothing says where the model is robust"),
        (["audit", "nowhere"], "nowhere"),
        (["compare", "nowhere", "elsewhere"], "cannot be read (No such file or directory): evaluate again"),
        (["compare", "a", "b", "c"], "two are compared, a and b: sparring report shows more side by side, c too"),
        (["compare", "nowhere"], "B is missing"),
    ],
)
def test_a_mistake_about_models_gets_a_sentence(args, message, capsys):
    assert run(args) == 2
    assert message in capsys.readouterr().err


def test_a_switch_of_a_recipe_can_be_turned_off():
    from sparring.cli.train import _chosen
    from sparring.models import SmoothBackward

    _, recipe, _ = _chosen("fashion_smooth_backward", ["--no-smooth-attack", "--alpha", "3", "--epochs", "1"])
    assert recipe.epochs == 1
    assert recipe.method.inner_mode.__name__ == "eval_mode"
    assert recipe.method.outer_mode == SmoothBackward(3.0)
