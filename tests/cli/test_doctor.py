"""`sparring doctor` tells the truth about this machine, and how to get what is missing."""

import json
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparring.acceleration.process import Tuned
from sparring.cli import run
from sparring.data import sources
from sparring.data.found import found
from sparring.data.named import source_of
from sparring.runs import doctor

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def machine(monkeypatch):
    """A machine to which nothing is missing."""
    monkeypatch.setattr(doctor, "tune_process", lambda: Tuned("kept", 4))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    monkeypatch.setattr(doctor, "computes_bf16", lambda device: True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "nvidia-smi" else f"/usr/bin/{name}")
    return monkeypatch


def test_the_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{version('sparring')}\n"


def test_a_complete_machine_gets_no_remark(machine):
    assert doctor.examine()["remarks"] == []


@pytest.mark.parametrize(
    ("name", "value", "remark"),
    [
        ("tune_process", lambda: Tuned("kept", 1), "torch uses 1 of 4 cores, as OMP_NUM_THREADS="),
        (
            "tune_process",
            lambda: Tuned("default: not known on darwin", 4),
            "freed memory is not kept (default: not known",
        ),
        ("computes_bf16", lambda device: False, "no instructions for bf16: attacks run in float32"),
    ],
)
def test_what_is_slow_is_said_with_its_remedy(machine, name, value, remark):
    machine.setattr(doctor, name, value)
    (said,) = doctor.examine()["remarks"]
    assert remark in said


def test_a_missing_compiler_and_an_unseen_gpu_are_said(machine):
    machine.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    unseen, compiler = doctor.examine()["remarks"]
    assert f"torch {torch.__version__} sees no GPU" in unseen
    assert "install one (Debian's g++)" in compiler


def test_gpus_are_listed_with_their_memory(machine, capsys):
    gpu = SimpleNamespace(name="Big One", major=9, minor=0, total_memory=80 * 2**30)
    machine.setattr(doctor, "device_of", lambda name: torch.device("cuda"))
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    machine.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    assert run(["doctor"]) == 0
    assert "device       cuda: Big One, 80.0 GiB\n" in capsys.readouterr().out


def test_a_missing_package_comes_with_its_command():
    given = ["numpy>=1", "pytest>=8; extra == 'dev'", "nowhere-to-be-found >= 2 ; extra == 'far'"]
    given += ["sparring[far]; extra == 'all'", 'numpy>=1; extra == "all"', "numpy; extra == 'near'"]
    far = {"nowhere-to-be-found": None}
    assert doctor.extras(given) == {
        "all": {"packages": {"numpy": version("numpy"), **far}, "get": "pip install 'sparring[all]'"},
        "far": {"packages": far, "get": "pip install 'sparring[far]'"},
        "near": {"packages": {"numpy": version("numpy")}, "get": None},
    }


def test_every_extra_for_users_is_examined(monkeypatch):
    """As pyproject.toml has them now, whatever it had when the package was installed."""
    given = [f"{each}; extra == '{extra}'" for extra, wanted in EXTRAS.items() for each in wanted]
    monkeypatch.setattr(doctor, "requires", lambda package: given)
    assert set(doctor.examine()["extras"]) == set(EXTRAS) - set(doctor.FOR_CONTRIBUTORS)


@pytest.mark.parametrize("name", found())
def test_data_are_found_where_their_source_looks_for_them(name, tmp_path, monkeypatch):
    class Asked(Exception):  # noqa: N818 - it is no error: the source asked
        pass

    def locate(remote, folder, dataset, elsewhere=()):
        raise Asked(dataset)

    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    monkeypatch.setattr("sparring.data.found._ELSEWHERE", {})
    monkeypatch.setattr(sources, "locate", locate)
    with pytest.raises(Asked) as asked:
        source_of(name).load()
    folder = tmp_path / str(asked.value)
    folder.mkdir()
    assert found()[name] is None, "an empty folder holds no data"
    (folder / "file").touch()
    assert found() == {**dict.fromkeys(found()), name: folder}


def test_text_and_json_say_the_same(machine, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "file").touch()
    assert run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert told["versions"]["torch"] == torch.__version__
    assert told["data"]["found"]["mnist"] == str(tmp_path / "mnist")
    assert f"  mnist          {tmp_path / 'mnist'}\n" in text
    assert "  cifar10        not here: downloaded when it is first used\n" in text
    for fact in (told["platform"], told["versions"]["numpy"], told["device"]["cpu"], told["data"]["folder"]):
        assert fact in text
    assert {extra["get"] for extra in told["extras"].values() if extra["get"]} == {
        line.partition(": ")[2] for line in text.splitlines() if " missing: " in line
    }


def test_an_unknown_flag_is_refused_before_anything_is_examined(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: pytest.fail("examined"))
    assert run(["doctor", "--deep"]) == 2
    assert "unknown argument '--deep'" in capsys.readouterr().err
