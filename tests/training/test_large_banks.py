"""Banks that are larger than one would copy: measuring and checkpoints take little memory besides."""

import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from forked import ended, started
from helpers import state

from sparring import TensorData
from sparring.objectives.example_bank import Bank
from sparring.training.checkpoint import Checkpoints
from sparring.training.profiling import _undone

BANK = 100_000 * 512 * 4  # bytes


def data(count):
    return TensorData(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.long), ("0", "1"))


@pytest.mark.parametrize("place", ["device", "disk"])
def test_rows_written_while_measuring_are_as_before_afterwards(place):
    held = state(1)
    held.memory = torch.nn.ModuleDict({"bank": Bank(data(6), 2, place)})
    bank = held.memory["bank"]
    bank[torch.arange(6)] = torch.arange(12.0).view(6, 2)
    before, address = bank.rows.clone(), bank.rows.data_ptr()
    with _undone(held):
        bank[torch.tensor([4, 1, 4])] = torch.full((3, 2), 7.0)
        bank[torch.tensor([1])] = torch.full((1, 2), 8.0)
        assert bank.rows[4, 0] == 7 and bank.rows[1, 0] == 8
    assert torch.equal(bank.rows, before) and bank.rows.data_ptr() == address
    bank[torch.tensor([0])] = torch.ones(1, 2)
    assert bank.rows[0].tolist() == [1, 1] and bank._before is None, "what is written later stays, and is not copied"


def test_buffers_that_are_not_persistent_are_as_before_too():
    held = state(1)
    held.model.register_buffer("seen", torch.zeros(()), persistent=False)
    with _undone(held):
        held.model.seen += 2
    assert held.model.seen == 0


def held_now():
    """Bytes of memory that this process alone has."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def most(work):
    """Return the largest number of bytes besides those of before that are held during the work."""
    began, seen, done = held_now(), [0], threading.Event()

    def look():
        while not done.wait(0.002):
            seen.append(held_now())

    watching = threading.Thread(target=look)
    watching.start()
    work()
    seen.append(held_now())
    done.set()
    watching.join()
    return max(seen) - began


def take_memory(folder):
    """Write how many bytes each piece of work takes besides a bank of 205 MB in a file."""
    held, fresh, index = state(1), state(2), torch.arange(64)
    held.memory, fresh.memory = Bank(data(100_000), 512, "disk"), Bank(data(100_000), 512, "disk")
    held.memory.rows.fill_(3.0)
    checkpoints = Checkpoints(folder)

    def measuring():
        with _undone(held):
            held.memory[index] = torch.ones(64, 512)

    found = {
        "measuring": most(measuring),
        "saving": most(lambda: checkpoints.save(held)),
        "loading": most(lambda: checkpoints.load_latest(fresh)),
    }
    assert held.memory.rows.eq(3).all() and fresh.memory.rows.eq(3).all() and fresh.step == 1
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    assert ended(started(take_memory, folder)) == 0
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its memory from /proc")
@pytest.mark.parametrize("work", ["measuring", "saving", "loading"])
def test_a_bank_in_a_file_is_not_copied_into_memory(taken, work):
    assert taken[work] < BANK / 4
