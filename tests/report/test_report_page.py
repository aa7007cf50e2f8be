"""The page, the model card and the files for machines, parsed back."""

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made import evaluation, made_run, made_study

from sparring.cli import run as shell
from sparring.report.gather import facts
from sparring.report.markdown import block, code, markdown, plainly
from sparring.report.page import _commands, for_script, page
from sparring.report.thresholds import junit, thresholds
from sparring.report.write import write_report

HOSTILE = "<script>alert('1')</script>&\"'`|*]]>--><!-- \u202eevil\u202c 🦊"


class Parsed(HTMLParser):
    """Tags, numbers by attack, and the JSON of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.numbers, self.scripts, self.row, self.inside = [], {}, {}, None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag == "tr":
            self.row = held.get("data-attack")
        if tag == "data" and self.row:
            self.numbers.setdefault(self.row, []).append(float(held["value"]))
        self.inside = held.get("id", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run")


def same(found):
    """The facts as JSON holds them, without the time at which they were gathered."""
    return {**json.loads(json.dumps(found)), "written": ""}


def test_the_numbers_of_the_page_are_those_of_the_evaluation_and_of_the_json(run, capsys):
    parsed = Parsed(write_report([run.path]).read_text())
    assert shell(["report", str(run.path), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert same(json.loads(parsed.scripts["facts"])) == same({**printed, "provenance": same_base(parsed)})
    table = run.evaluation()["best"]  # what `sparring evaluate --json` prints
    for row in printed["attacks"]:
        assert row["accuracy"] | table[row["name"]] == row["accuracy"]
        assert parsed.numbers[row["name"]][0] == table[row["name"]]["accuracy"]


def same_base(parsed):
    return json.loads(parsed.scripts["facts"])["provenance"]


def test_a_page_needs_nothing_from_elsewhere(run):
    text = write_report([run.path]).read_text()
    for tag, attributes in Parsed(text).tags:
        assert tag != "link"
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/", "https://arxiv.org/")), (tag, attributes)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|eval\(", text)


def test_hostile_names_are_text(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    run = made_run(folder, classes=(HOSTILE, *"abcdefghi"), recipe_name=HOSTILE)
    result = run.read_flags("best")
    run.write_flags("best", replace(result, notes=(HOSTILE,)))
    text = write_report([folder]).read_text()
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.tags if tag == "script"] == ["script"] * 3
    assert not any("onerror" in held for _, held in parsed.tags)
    assert not any(tag == "img" for tag, held in parsed.tags)
    assert json.loads(parsed.scripts["facts"])["examples"]["classes"][0] == HOSTILE
    assert html.escape(HOSTILE, quote=False).split("&lt;!--")[0].split("'")[0] in text
    card = run.model_card.read_text()
    assert "<script" not in re.sub(r"```.*?```|`[^`\n]*`", "", card, flags=re.DOTALL).replace("\\<", "")


def test_json_in_a_script_cannot_end_it():
    for text in ("</script>", "<!--", "\u2028", "]]>", "&lt;"):
        written = str(for_script([text]))
        assert not set("<>&\u2028\u2029") & set(written)
        assert json.loads(written) == [text]
    with pytest.raises(ValueError, match="JSON"):
        for_script([float("nan")])


def test_a_link_of_a_study_is_one_only_if_it_leads_to_a_page(tmp_path):
    folder = made_study(tmp_path / "study")
    held = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**held, "source": "javascript:alert(1)"}))
    links = [held["href"] for tag, held in Parsed(write_report([folder]).read_text()).tags if tag == "a"]
    assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize(
    ("gone", "command"),
    [
        ("audit.json", "sparring audit {}"),
        ("analysis-landscape.json", "sparring analyze {} landscape"),
        ("evaluation-best.npz", "sparring evaluate {} --autoattack standard"),
    ],
)
def test_a_panel_without_data_names_the_command_that_gives_it(gone, command, tmp_path):
    run = made_run(tmp_path / "run", which=("best",))
    (run.path / gone).unlink()
    copied = [held["data-copy"] for _, held in Parsed(write_report([run.path]).read_text()).tags if "data-copy" in held]
    assert command.format(run.path) in copied


def test_results_without_distances_and_pictures_have_a_page(run):
    run.write_flags("best", replace(evaluation(pictures=False), distance=None, predicted={}, passes={}, seconds={}))
    text = write_report([run.path]).read_text()
    assert "--min-norm" in text and "The results hold no pictures" in text


@pytest.mark.slow
def test_ten_thousand_examples_with_colour_pictures_are_at_most_five_megabytes(tmp_path):
    run = made_run(tmp_path / "run", n=10_000, side=32, channels=3)
    size = write_report([run.path]).stat().st_size
    assert size < 5e6, size


@pytest.mark.slow
def test_large_pictures_are_made_smaller(tmp_path):
    run = made_run(tmp_path / "run", ("best",), n=40, side=112, channels=3)
    sheets = json.loads(Parsed(write_report([run.path]).read_text()).scripts["sheets"])
    assert (sheets["width"], sheets["height"]) == (96, 96)


def test_arms_with_other_numbers_of_seeds_or_images_are_said_to_have_them(tmp_path):
    folder = made_study(tmp_path / "study")
    held = json.loads((folder / "study.json").read_text())
    assert f"trainings x {held['seeds']} seeds" in markdown(facts([folder])[0])
    next(iter(held["arms"].values())).update(seeds=1, examples=2000)
    (folder / "study.json").write_text(json.dumps(held))
    said = f"{held['seeds']} seeds, {held['examples']} or 2,000 test images"
    assert f"trainings x 1 to {said}" in markdown(facts([folder])[0])
    assert f"× 1 to {said}" in write_report([folder]).read_text()


def test_numbers_of_a_study_that_are_not_defined_are_left_open(tmp_path):
    folder = made_study(tmp_path / "study")
    held = json.loads((folder / "study.json").read_text())
    nan = {"value": float("nan"), "low": float("nan"), "high": float("inf")}
    verdict = {**held["verdicts"][0], "low": float("nan"), "unit": "nats"}
    unknown = {"numbers": {"baseline": {"share": nan}}, "verdicts": [verdict, {**verdict, "unit": None}]}
    (folder / "study.json").write_text(json.dumps({**held, **unknown}))
    parsed = Parsed(write_report([folder]).read_text())
    assert json.loads(parsed.scripts["facts"])["study"]["numbers"]["baseline"]["share"]["value"] is None
    assert "[+nan, " in markdown(facts([folder])[0])


def test_a_study_says_how_many_claims_are_decided_and_why_others_cannot_be(tmp_path):
    text = write_report([made_study(tmp_path / "study")]).read_text()
    assert "2 of 4 claims are decided" in text
    assert "– not testable here" in text and "Why: a margin is too small." in text and "; 5 seeds" in text
    assert "detectable effect 12.5 points" in text


# -- Markdown


def test_the_model_card_has_every_attack_with_its_interval(run):
    write_report([run.path])
    card = run.model_card.read_text()
    assert card.startswith("---\nlibrary_name: sparring\n")
    for name, accuracy in run.read_flags("best").table().items():
        assert f"| {plainly(name)} |" in card and f"{100 * accuracy.value:.1f} %" in card
    assert "What this does not say" in card and "@software" in card


def test_text_from_elsewhere_has_no_mark_up_in_markdown():
    assert plainly("a | b\n# c [x](y) <b>") == r"a \| b \# c \[x\]\(y\) \<b\>"
    assert code("a `` b") == "``` a `` b ```".replace("``` ", "```").replace(" ```", "```")
    assert block("```\nx") == "````\n```\nx\n````"


def test_a_study_has_its_claims_in_markdown(tmp_path):
    text = markdown(facts([made_study(tmp_path / "study")])[0])
    assert "| Claim supported. | +20.0 [+10.0, +30.0] points | supported |" in text


# -- bounds


def test_a_bound_that_is_missed_fails(run, capsys):
    robust = 100 * facts([run.path])[0]["verdict"]["robust"]["accuracy"]["accuracy"]
    assert shell(["report", str(run.path), "--fail-under", f"robust={robust - 0.1:.3f}"]) == 0
    assert (
        shell(["report", str(run.path), "--fail-under", f"robust={robust + 0.1:.3f}", "--fail-under", "clean=1"]) == 1
    )
    assert "FAILED: robust accuracy is" in capsys.readouterr().err


def test_a_bound_that_is_reached_exactly_is_reached(run):
    """100 x 0.29 is 28.999.. in floating point."""
    whole = facts([run.path])[0]
    for count in range(101):
        clean = {"accuracy": count / 100, "correct": count, "examples": 100}
        found = {**whole, "attacks": [{"name": "clean", "accuracy": clean}]}
        assert thresholds(found, [f"clean={count}"])[0].reached
        assert count == 100 or not thresholds(found, [f"clean={count + 1}"])[0].reached


def test_a_bound_is_of_one_target(run, capsys):
    assert shell(["report", str(run.path), str(run.path), "--fail-under", "robust=1"]) == 2
    assert "--fail-under bounds the accuracies of one target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ("robust", "write the name of an accuracy and a percentage, as robust=45"),
        ("robust=4.5.1", "write the name"),
        ("robust=0.45", "write a percentage, robust=45, or robust=0.45% if you mean it"),
        ("robust=101", "write the name"),
        ("autoatack=40", "did you mean autoattack"),
    ],
)
def test_a_bound_that_cannot_be_read_is_a_mistake(bound, sentence, run, capsys):
    assert shell(["report", str(run.path), "--format", "json", "--fail-under", bound]) == 2
    assert sentence in capsys.readouterr().err


def test_junit_has_a_test_for_each_bound_and_check(run, tmp_path):
    out = tmp_path / "report.xml"
    given = ["--format", "junit", "--out", str(out), "--fail-under", "robust=99.9", "--fail-under", "clean=1"]
    assert shell(["report", str(run.path), *given]) == 1
    suite = ElementTree.parse(out).getroot()
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert cases["fail-under", "robust"].find("failure") is not None
    assert cases["fail-under", "clean"].find("failure") is None
    assert cases["audit", "black box"].find("system-out").text.startswith("warn: ")
    assert suite.get("failures") == "1" and suite.get("tests") == str(len(suite))
    assert "[" in cases["accuracy", "autoattack"].find("system-out").text


def test_junit_holds_hostile_names(run):
    found = {**facts([run.path])[0], "title": f"{HOSTILE}\x00\ud800"}
    assert ElementTree.fromstring(junit(found, thresholds(found, ["clean=1"])).encode()).get("name").endswith("��")


def test_json_and_markdown_say_what_was_changed_against_the_recipe_as_the_page_does(run, capsys):
    recipe = run.recipe()
    run.begin({**recipe, "epochs": recipe["epochs"] + 1})
    assert shell(["report", str(run.path), "--format", "json"]) == 0
    changed = json.loads(capsys.readouterr().out)["provenance"]["changed"]
    assert any(text.startswith("epochs: ") for text in changed)
    assert shell(["report", str(run.path), "--format", "markdown"]) == 0
    assert "Changed against the recipe" in capsys.readouterr().out


def test_commands_of_a_model_that_was_not_trained_here_name_the_model_and_its_data():
    command = "sparring evaluate net.py:build --data npz:a.npz --threat linf:0.1 --out runs/f"
    found = _commands({"target": "runs/f", "provenance": {"commands": [command]}})
    assert found["audit"] == "sparring audit net.py:build --data npz:a.npz --threat linf:0.1"
    assert found["evaluate"].endswith("--autoattack standard --out runs/f")
    trained = ["sparring train quickstart", "sparring evaluate runs/q"]
    assert _commands({"target": "runs/q", "provenance": {"commands": trained}})["audit"] == "sparring audit runs/q"


# -- the command


def test_the_command_says_what_it_wrote_and_what_it_needs(run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shell(["report", "run"]) == 0
    assert "report: run/report.html" in capsys.readouterr().out
    assert shell(["report", "run", "run", "--out", "both.html"]) == 0
    assert (tmp_path / "both.html").exists() and (tmp_path / "model-card.md").exists()
    assert shell(["report"]) == 2 and shell(["report", "nowhere"]) == 2
    assert shell(["report", "run", "--format", "json", "--open"]) == 2


def test_a_page_can_be_opened(run, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert shell(["report", str(run.path), "--open"]) == 0
    assert opened == [run.report.resolve().as_uri()]


def test_the_help_of_the_command_needs_no_torch():
    code = "import sys; from sparring.cli import run; run(['report', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_page_of_a_study_with_many_trainings_lists_all_of_them(tmp_path):
    folder = made_study(tmp_path / "study", arms=22)
    found, models = facts([folder])
    text = page(found, models)
    assert len(re.findall(r"data-arm=", text)) == 22 and 'data-chart="multiples"' in text
