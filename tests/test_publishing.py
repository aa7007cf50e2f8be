"""What publishes the package agrees with pyproject.toml: image, workflow, citation, badges, changelog."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
JOBS = WORKFLOW["jobs"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def runs(job):
    """The shell commands of a job."""
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_dockerfile_is_clean_in_the_eyes_of_hadolint():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = subprocess.run(
        [hadolint, "-"], input="FROM python\nRUN cd /tmp\n", capture_output=True, text=True, check=False
    )
    assert broken.returncode != 0, "it sees what is wrong"


def test_the_image_installs_what_is_pinned_and_copies_what_is_not_ignored():
    installs = re.findall(r"pip install (.+)", DOCKERFILE)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in each for each in installs)
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()]
    assert ignored[0] == "*"
    assert all((ROOT / path).exists() and f"!{path}" in ignored for path in copied)
    needed = [PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "src"]
    assert set(needed) <= set(copied)


def test_the_image_runs_the_newest_python_and_not_as_root():
    assert f"ARG PYTHON={PYTHONS[-1]}\n" in DOCKERFILE
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)


def test_the_workflow_runs_what_ci_runs_on_every_python():
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    assert JOBS["tests"]["strategy"]["matrix"]["python"] == PYTHONS
    assert runs("tests") == ["bash .ci/run"]
    assert runs("docs") == ["make docs"]
    assert runs("packages") == ["make dist sbom"]


def test_the_workflow_tests_the_lowest_and_the_newest_torch():
    (command,) = runs("torch")
    versions = [each["versions"] for each in JOBS["torch"]["strategy"]["matrix"]["include"]]
    assert [command.replace("${{ matrix.versions }}", each) for each in versions] == [
        "make test-lowest",
        "make test-latest",
    ]


@pytest.mark.parametrize("job", JOBS)
def test_every_step_of_the_workflow_can_be_carried_out(job):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in runs(job):
        words = command.replace("${{ matrix.versions }}", "lowest").split()
        assert words[0] in ("make", "bash", "docker")
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        if words[0] == "bash":
            assert (ROOT / words[1]).exists()
    for step in JOBS[job]["steps"]:
        assert "run" in step or re.fullmatch(r"[\w/-]+@v\d+", step["uses"])


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "required by the format"
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert cited["authors"] == PROJECT["authors"]


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(PROJECT['version'])} \((unreleased|\d{{4}}-\d\d-\d\d)\)", headings[0])


def test_the_badges_tell_the_truth():
    badge = {path.stem: path.read_text() for path in (ROOT / "docs" / "badges").glob("*.svg")}
    (torch,) = (each.rpartition(" ")[2] for each in PROJECT["dependencies"] if each.startswith("torch "))
    for name, told in {
        "python": " | ".join(PYTHONS),
        "torch": f"{torch} and newer",
        "licence": PROJECT["license"],
    }.items():
        assert f">{told}<" in badge[name]
    assert {f"docs/badges/{name}.svg" for name in badge} <= set(
        re.findall(r"\((\S+)\)", (ROOT / "README.md").read_text())
    )
