"""Benchmarks take too long for a test, but what they import has to be there."""

import ast
import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sparring.bench import ATTACK

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_from_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparring":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (
                    f"{node.module}: {name}"
                )


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The benchmark of a GPU as a function of its arguments, with a shorter attack and without the ceilings."""
    monkeypatch.setattr("sparring.bench.ATTACK", replace(ATTACK, steps=2))
    monkeypatch.setattr("sparring.bench.ceilings", lambda device: {"matrix product bf16": 100.0})
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # where its dataclass looks for types
    spec.loader.exec_module(module)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG"):  # which it sets
        monkeypatch.setenv(name, "")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *args, "--out", str(tmp_path)])
        module.main()
        return {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check", "speed"])
def test_the_benchmark_of_a_gpu_writes_each_result_as_it_goes(what, gpu):
    """At reduced size on the CPU; nothing but the missing peer may fail."""
    found = gpu(what, "--small")
    assert {name for name, each in found.items() if "failed" in each} <= {"step 8 torchattacks"}
    if what == "speed":
        assert found["step 8 ours, eager"]["found"]["images a second"] > 0
        return
    assert found["captured pgd"]["found"]["equal"]
    assert found["resumed eager"]["found"]["equal"]
    assert found["peaks"]["found"]["96"]["predicted"] == pytest.approx(1, abs=0.1)
    sums = {found[f"step {name}"]["found"]["sum of weights"] for name in ("pgd", "awp")}
    assert len(sums) == 2, "the nets were trained, each in its own way"
