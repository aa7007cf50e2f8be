"""Functions and classes of other packages in files: named, hashed, and imported only if they are trusted."""

import json
import sys
import textwrap

import pytest

from sparring import Build, UserError
from sparring.core import foreign
from sparring.core.serialization import from_plain, to_plain

MODULE = """
    from dataclasses import dataclass
    from os import system
    import json

    @dataclass(frozen=True)
    class Halves:
        share: float = 0.5
        size: "int | Unimported" = 3

    class Outer:
        class Inner: ...

    def build(width: int = 4):
        return width

    half = lambda: 2
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module of a user, and nothing that is trusted."""
    (tmp_path / "theirs_module.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(foreign, "_TRUSTED", set())
    monkeypatch.setattr(foreign, "_GIVEN", set())
    foreign._hash.cache_clear()
    import theirs_module

    yield theirs_module
    sys.modules.pop("theirs_module", None)


def test_values_calls_and_names_are_written_with_a_hash_and_read_back(theirs):
    for value in (theirs.Halves(0.25), Build(theirs.build, width=2), theirs.Outer.Inner, (theirs.build, 1)):
        plain = json.loads(json.dumps(to_plain(value)))
        assert from_plain(plain) == value or repr(from_plain(plain)) == repr(value)
    assert to_plain(theirs.Halves(0.25)) == {
        "$": "theirs_module:Halves",
        "$source": foreign.source_of(theirs.build),
        "share": 0.25,
        "size": 3,
    }


def test_a_file_is_read_only_if_its_module_is_trusted(theirs, monkeypatch):
    plain = {"$": "theirs_module:Halves", "$source": ""}
    with pytest.raises(UserError, match=r"recipe names theirs_module:Halves.*--trust theirs_module, sparring.trust"):
        from_plain(plain)
    monkeypatch.setenv("SPARRING_TRUST", "numpy, theirs_module")
    assert from_plain(plain) == theirs.Halves()
    monkeypatch.delenv("SPARRING_TRUST")
    with pytest.raises(UserError, match="another package"):
        from_plain(plain)
    foreign.trust("theirs_module")
    assert from_plain(plain) == theirs.Halves()


def test_an_untrusted_module_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("$", "$call", "$name"):
        with pytest.raises(UserError, match="another package"):
            from_plain({key: "trap_module:build"})
    assert "trap_module" not in sys.modules
    foreign.trust("trap_module")
    with pytest.raises(UserError, match=r"importing trap_module fails \(SystemExit: imported\)"):
        from_plain({"$call": "trap_module:build"})


@pytest.mark.parametrize(
    "name",
    [
        "theirs_module:system",
        "theirs_module:json.dumps",
        "theirs_module:half",
        "theirs_module:gone",
        "theirs_module:json",
    ],
)
def test_of_a_trusted_module_only_what_it_defines_itself_is_taken(theirs, name):
    foreign.trust("theirs_module")
    with pytest.raises(UserError, match="defines no such function or class"):
        from_plain({"$name": name})


@pytest.mark.parametrize("name", ["../x:build", "x:", ":y", "a b:c", "theirs_module:build()", "os.path:join:x"])
def test_a_path_or_code_is_no_name(theirs, name):
    foreign.trust("os", "theirs_module", "x")
    with pytest.raises(UserError, match="is no name of a function or class"):
        from_plain({"$name": name})


def test_trust_in_a_package_is_not_trust_in_its_namesakes(theirs):
    foreign.trust("theirs")
    with pytest.raises(UserError, match="another package"):
        from_plain({"$name": "theirs_module:build"})
    assert foreign.is_trusted("theirs.part") and not foreign.is_trusted("their")


def test_a_changed_source_is_said(theirs):
    plain = {**to_plain(theirs.Halves()), "$source": "0123456789abcdef"}
    with pytest.warns(UserWarning, match="the source of theirs_module:Halves has changed since recipe was written"):
        assert from_plain(plain) == theirs.Halves()


def test_fields_and_options_are_checked_as_far_as_they_are_annotated(theirs):
    foreign.trust("theirs_module")
    with pytest.raises(UserError, match="Halves has no field 'shares'"):
        from_plain({"$": "theirs_module:Halves", "shares": 1})
    with pytest.raises(UserError, match=r"recipe.width is '4', wanted is int"):
        from_plain({"$call": "theirs_module:build", "width": "4"})
    with pytest.raises(UserError, match="it is no dataclass"):
        from_plain({"$": "theirs_module:Outer"})


def test_what_cannot_be_imported_by_a_name_is_refused(theirs):
    def local(): ...

    with pytest.raises(UserError, match="defined inside a function: define it at the top level"):
        to_plain(local)


def test_a_file_that_the_user_names_is_a_module_that_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "_TRUSTED", set())
    (tmp_path / "their_recipes.py").write_text("def build():\n    return 3\n")
    module = foreign.load_file(tmp_path / "their_recipes.py")
    assert module.build() == 3 and foreign.load_file(tmp_path / "their_recipes.py") is module
    assert from_plain(to_plain(Build(module.build)))() == 3
    with pytest.raises(UserError, match="there is no file"):
        foreign.load_file(tmp_path / "none.py")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="has the name of the module json, which is already there: rename"):
        foreign.load_file(tmp_path / "json.py")
    (tmp_path / "broken_recipes.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"importing broken_recipes fails \(ZeroDivisionError"):
        foreign.load_file(tmp_path / "broken_recipes.py")


def installed(folder, points, module="plug_module", code=MODULE):
    """Install a package by hand, as an installer writes it."""
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    info = folder / "plug-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{module}.py,,\nplug-1.0.dist-info/METADATA,,\n")
    (info / "entry_points.txt").write_text(points)


def test_a_file_whose_name_is_no_name_in_python_is_refused(tmp_path):
    for name in ("my-models.py", "net.v2.py"):
        (tmp_path / name).write_text("def build(): ...\n")
        with pytest.raises(UserError, match="cannot be the name of a module: rename the file"):
            foreign.member(f"{tmp_path / name}:build", "a model")


def test_a_decorated_function_has_the_hash_of_its_own_file(tmp_path):
    (tmp_path / "decorated.py").write_text("import torch\n@torch.no_grad()\ndef build(): ...\ndef plain(): ...\n")
    build = foreign.member(f"{tmp_path / 'decorated.py'}:build", "a model")
    assert foreign.source_of(build) == foreign.source_of(
        foreign.member(f"{tmp_path / 'decorated.py'}:plain", "a model")
    )


def test_a_function_that_takes_any_option_may_be_given_any():
    def build(width=1, **rest):
        return width, rest

    assert Build(build, depth=2)(shape=3) == (1, {"depth": 2, "shape": 3})
    with pytest.raises(UserError, match="takes no 'depth'"):
        Build(lambda width=1, *rest: width, depth=2)


def test_a_package_that_is_installed_for_editing_is_used_in_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "src" / "edited").mkdir(parents=True)
    (tmp_path / "src" / "edited" / "__init__.py").write_text("def build(n): return n\n")
    about = tmp_path / "site" / "edited-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1\n")
    (about / "RECORD").write_text("__editable__.edited-1.pth,,\n")
    (about / "entry_points.txt").write_text("[sparring.models]\nedited = edited:build\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="takes the place of that module"):
        foreign.plugin(foreign.plugins("models")["edited"])
    (about / "direct_url.json").write_text(json.dumps({"url": tmp_path.as_uri(), "dir_info": {"editable": True}}))
    assert foreign.plugin(foreign.plugins("models")["edited"])(3) == 3


def test_an_installed_package_registers_what_it_has(tmp_path, monkeypatch):
    installed(tmp_path, "[sparring.models]\nplugged = plug_module:build\ngone = plug_module:gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(foreign, "_TRUSTED", set())
    points = foreign.plugins("models")
    assert foreign.plugin(points["plugged"])(3) == 3
    assert foreign.is_trusted("plug_module")
    with pytest.raises(UserError, match=r"gone of the package plug is plug_module:gone, but module "):
        foreign.plugin(points["gone"])
    sys.modules.pop("plug_module")


def test_a_local_file_does_not_take_the_place_of_the_module_of_an_entry_point(tmp_path, monkeypatch):
    site, here = tmp_path / "site", tmp_path / "here"
    site.mkdir(), here.mkdir()
    installed(site, "[sparring.recipes]\nplugged = plug_module:build\n")
    (here / "plug_module.py").write_text("raise SystemExit('the local file')")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), str(site), *sys.path])
    with pytest.raises(UserError, match=r"here/plug_module\.py takes the place of that module"):
        foreign.plugin(foreign.plugins("recipes")["plugged"])
    assert "plug_module" not in sys.modules


def test_a_package_that_fails_to_import_is_named_and_the_rest_works(tmp_path, monkeypatch, capsys):
    from sparring.cli import run as shell

    installed(tmp_path, "[sparring.recipes]\nbroken_one = plug_module:build\n", code="1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert shell(["list"]) == 0
    out = capsys.readouterr().out
    assert "broken_one" in out and "plug_module:build, of the package plug." in out and "quickstart" in out
    assert shell(["show", "broken_one"]) == 2
    assert "importing plug_module fails (ZeroDivisionError" in capsys.readouterr().err


def test_a_file_in_the_present_folder_does_not_take_the_place_of_an_installed_module(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the local file')")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("colorsys", None)
    foreign.trust("colorsys")
    assert from_plain({"$name": "colorsys:rgb_to_hsv"}).__module__ == "colorsys"
