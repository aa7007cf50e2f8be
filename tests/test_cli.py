import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from sparring.cli import run

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
    assert re.search(r"^quickstart +PGD-AT of a small CNN", out, re.MULTILINE)
    assert run(["list", "--json"]) == 0
    assert "fashion_pgd" in json.loads(capsys.readouterr().out)


def test_show_prints_a_recipe_in_full(capsys):
    assert run(["show", "cifar10_wrn34_10_trades"]) == 0
    out = capsys.readouterr().out
    assert "depth=34" in out
    assert "53.08 %" in out
    assert run(["show", "quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["$"] == "recipe:Recipe"


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
        (["train", "quickstart", "--epochs", "0"], "epochs = 0 is not at least 1"),
        (["train", "quickstart", "--device", "tpu"], "device 'tpu' is not available here"),
        (["train", "quickstart", "--model.activation", "rleu"], "did you mean relu"),
        (["train", "quickstart", "--optimizer.momentum", "0"], "Nesterov momentum needs a momentum above 0"),
        (["train", "quickstart", "--lr.top", "1"], "0 < top < 1, not at 1"),
        (["train", "quickstart", "--save-steps", "0"], "after 1 step or more"),
        (["train", "quickstart", "--evaluation.batch-size", "0"], "needs at least one example"),
        (["train", "quickstart", "--method.attack.steps", "0"], "at least one step, not 0"),
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
    assert "finished run: --overwrite it" in capsys.readouterr().err


def test_evaluate_prints_one_json_object_and_nothing_else(trained):
    done = shell("evaluate", str(trained), "--json", "--evaluation.adversaries.pgd-50-10.attack.times", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"best", "last"}
    for table in found.values():
        assert set(table) == {"clean", "fgsm", "pgd-50-10"}
        assert set(table["clean"]) == {"accuracy", "low", "high", "examples"}
        assert table["clean"]["examples"] == 30
        assert table["clean"]["low"] <= table["clean"]["accuracy"] <= table["clean"]["high"]
        assert table["pgd-50-10"]["accuracy"] <= table["clean"]["accuracy"]
    written = json.loads((trained / "evaluation.json").read_text())
    how = written.pop("how")
    assert written == found
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


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path):
    """A real process, a real signal, and then the printed command itself."""
    args = ["train", "quickstart", "--out", "my run", *SMALL, "--epochs", "400", "--overwrite"]
    command = [sys.executable, "-c", "from sparring.cli import main; main()", *args]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "my run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    again = re.search(r"everything is saved\. Go on with: (sparring .*)", err).group(1)
    assert "'my run'" in again
    assert "--overwrite" not in again
    (checkpoint,) = sorted((tmp_path / "my run" / "checkpoints").iterdir())[-1:]
    step = int(checkpoint.name.removeprefix("step-"))
    command = [*command[:3], *shlex.split(again)[1:]]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    process.stderr.readline()  # the end of an epoch: it trains
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert line == f"going on after step {step}\n"
