"""The state of an evaluation, to which several processes may write."""

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import toy_data, toy_net
from forked import ended, started

from sparring import FGSM, Linf, OriginalModel, UserError, WhiteBox, evaluate
from sparring.core.types import pixels
from sparring.evaluation import journal
from sparring.evaluation.journal import Part, PartStore

SHAPE = (1000, 1, 2, 2)
ABOUT = {"seed": 0}


def part(*rows):
    count = len(rows)
    numbers = np.zeros(count, np.float32)
    broken = np.zeros(count, bool)
    return Part(np.array(rows), broken, numbers, numbers, np.zeros(count, int), np.zeros((0, 1, 2, 2), np.float32))


def rows_in(store, stage="pgd"):
    return sorted(row for each in store.parts(stage) for row in each.rows.tolist())


def write_parts(folder, number):
    while not (folder / "go").exists():
        pass
    store = PartStore(folder / "state", ABOUT, SHAPE)
    for i in range(40):
        store.add("pgd", part(3 * i + number))


@pytest.mark.slow
def test_three_processes_begin_one_journal_and_no_part_is_lost(tmp_path):
    processes = [started(write_parts, tmp_path, number) for number in range(3)]
    (tmp_path / "go").touch()
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert rows_in(PartStore(tmp_path / "state", ABOUT, SHAPE)) == list(range(120))
    assert not list((tmp_path / "state").glob(".*")), "nothing is left half written"


def test_several_may_begin_a_state_at_once(tmp_path):
    """All of them write about.json, whatever the others have written by then."""
    for attempt in range(20):
        folder, failed, go = tmp_path / str(attempt), [], threading.Barrier(4)

        def begin(number, folder=folder, failed=failed, go=go):
            go.wait()
            try:
                PartStore(folder, ABOUT, SHAPE).add("pgd", part(number))
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert rows_in(PartStore(folder, ABOUT, SHAPE)) == [0, 1, 2, 3]


def test_parts_that_were_numbered_are_read_beside_those_of_today(tmp_path):
    store = PartStore(tmp_path, ABOUT, SHAPE)
    store.add("pgd", part(0, 1))
    (new,) = tmp_path.glob("*.npz")
    stage = new.name[:-37]
    np.savez(tmp_path / f"{stage}-000000.npz", **part(2)._asdict())
    np.savez(tmp_path / f"{stage}-000001.npz", **part(3)._asdict())
    np.savez(tmp_path / f"{stage}-notes.npz", **part(4)._asdict())
    assert rows_in(store) == [0, 1, 2, 3]
    assert rows_in(store, "pg") == []


def test_a_damaged_part_that_another_process_renames_first_is_skipped_too(tmp_path, monkeypatch):
    store = PartStore(tmp_path, ABOUT, SHAPE)
    for row in range(3):
        store.add("pgd", part(row))
    damaged, gone, _ = sorted(tmp_path.glob("*.npz"))
    damaged.write_bytes(b"")
    rename, read = Path.rename, journal.read_bytes

    def renamed_twice(self, target):
        rename(self, target)
        return rename(self, target)

    def read_late(path):
        if path == gone:
            rename(path, path.with_suffix(".damaged"))
        return read(path)

    monkeypatch.setattr(Path, "rename", renamed_twice)
    monkeypatch.setattr(journal, "read_bytes", read_late)
    with pytest.warns(UserWarning, match="is damaged .*: its examples are attacked again"):
        assert len(rows_in(store)) == 1


def test_a_state_keeps_a_few_images_of_each_part_and_all_if_the_result_holds_them(tmp_path):
    net = toy_net().eval()
    data = toy_data().relabelled(net(pixels(toy_data().x)).argmax(1))
    attack = {"fgsm": WhiteBox(FGSM(Linf(0.3)))}
    given = {"backend": OriginalModel(), "state": tmp_path}
    shown = evaluate(net, data, attack, **given)
    broken = int((shown.robust["clean"] & ~shown.robust["fgsm"]).sum())
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as held:
        assert len(held["images"]) == 24 < held["broken"].sum() == broken
    whole = evaluate(net, data, attack, **given, keep_images=True)
    fresh = evaluate(net, data, attack, backend=OriginalModel(), keep_images=True)
    assert np.array_equal(whole.adversarial["fgsm"], fresh.adversarial["fgsm"])
    assert len(list(tmp_path.glob("*.npz"))) == 2, "the part without images was done again"
    assert np.array_equal(shown.examples.adversarial, whole.examples.adversarial)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = evaluate(net, data, attack, **given, keep_images=True)
    assert np.array_equal(again.adversarial["fgsm"], fresh.adversarial["fgsm"])


def test_files_of_somebody_else_are_no_state(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files that are not of an evaluation: choose another folder"):
        PartStore(tmp_path, ABOUT, SHAPE)
    PartStore(tmp_path / "new", ABOUT, SHAPE)
    with pytest.raises(UserError, match=r"the state of another evaluation \(seed: 0 -> 1\)"):
        PartStore(tmp_path / "new", {"seed": 1}, SHAPE)
