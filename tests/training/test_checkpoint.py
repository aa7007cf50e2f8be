import pytest
import torch
from conftest import toy_net
from helpers import state
from safetensors.torch import save_file

from sparring import UserError
from sparring.training.checkpoint import Checkpoints, read_weights, save_weights


def same(a, b):
    assert a.step == b.step
    assert a.best == b.best
    assert a.seed == b.seed
    for name, module in a.modules().items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, b.modules()[name].state_dict()[key]), key
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(a.optimizer.state[p]["momentum_buffer"], b.optimizer.state[q]["momentum_buffer"])


def test_a_checkpoint_gives_back_everything(tmp_path):
    saved, fresh = state(7), state(seed=1)
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(saved)
    assert checkpoints.load_latest(fresh) == path
    same(saved, fresh)


def test_two_checkpoints_are_kept_and_nothing_else_lies_about(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.save(state(step))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in checkpoints.paths()] == ["step-000000003", "step-000000004"]


def test_the_rest_of_a_checkpoint_loads_without_pickled_code(tmp_path):
    path = Checkpoints(tmp_path).save(state(3))
    held = torch.load(path / "state.pt", weights_only=True)
    assert held["step"] == 3


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checksums.json"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, name, harm):
    checkpoints, older = Checkpoints(tmp_path), state(1)
    checkpoints.save(older)
    path = checkpoints.save(state(2)) / name
    raw = path.read_bytes()
    middle = len(raw) // 2
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[:middle], "flipped": raw[:middle] + b"#" + raw[middle + 1 :], "empty": b""}[harm])
    fresh = state(seed=1)
    with pytest.warns(UserWarning, match=r"step-000000002 is damaged: going back to the one before"):
        assert checkpoints.load_latest(fresh).name == "step-000000001"
    same(older, fresh)
    assert checkpoints.paths() == [tmp_path / "step-000000001"], "the damaged one does not count as one of two"


def test_when_every_checkpoint_is_damaged_the_user_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.save(state(1)) / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        checkpoints.load_latest(state())


def test_a_half_written_checkpoint_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.load_latest(state(seed=1)).name == "step-000000001"
    checkpoints.save(state(2))
    assert not (tmp_path / ".writing").exists()


def test_saving_on_a_full_disk_fails_and_harms_nothing(tmp_path, monkeypatch):
    checkpoints, good = Checkpoints(tmp_path), state(1)
    checkpoints.save(good)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(state(2))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    fresh = state(seed=1)
    checkpoints.load_latest(fresh)
    same(good, fresh)


def test_a_state_without_an_average_has_none_on_disk(tmp_path):
    Checkpoints(tmp_path).save(state(1, average=False))
    fresh = state(seed=1, average=False)
    Checkpoints(tmp_path).load_latest(fresh)
    same(state(1, average=False), fresh)


def test_weights_say_what_they_are(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, toy_net(), {"recipe": {"a": 1}, "classes": ["x"]})
    tensors, about = read_weights(path)
    assert about == {"recipe": {"a": 1}, "classes": ["x"]}
    assert all(torch.equal(t, toy_net().state_dict()[n]) for n, t in tensors.items())


def test_tied_weights_can_be_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_weights(tmp_path / "a.safetensors", model, {})
    assert len(read_weights(tmp_path / "a.safetensors")[0]) == 4


def test_state_dicts_of_other_programs_are_read_if_they_hold_tensors_only(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"epoch": 3, "state_dict": toy_net().state_dict()}, path)
    assert set(read_weights(path)[0]) == set(toy_net().state_dict())
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        read_weights(path)
    torch.save(toy_net(), path)  # a pickled module could run anything
    with pytest.raises(UserError, match="that holds only tensors") as said:
        read_weights(path)
    assert "weights_only" not in str(said.value), "torch's advice, how to run what is in it, is not passed on"


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_broken_weights_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UserError, match=f"there is no file .*{name}"):
        read_weights(path)
    for content in (b"", b"<html>quota exceeded</html>", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} cannot be read .*: wanted is an undamaged file of weights"):
            read_weights(path)


def test_a_header_of_another_program_tells_us_nothing(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, about = read_weights(tmp_path / "a.safetensors")
    assert set(tensors) == {"w"}
    assert about == {}


def test_equal_weights_are_equal_files(tmp_path):
    about = {"recipe": {"a": 1}, "step": 3, "classes": ["x", "y"]}
    for i in range(10):
        save_weights(tmp_path / str(i), toy_net(), about)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(10)}) == 1


def test_a_pinned_checkpoint_outlives_newer_ones_and_can_be_gone_back_to(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.pinned = 1 if step == 1 else checkpoints.pinned
        checkpoints.save(state(step))
    assert [p.name[-1] for p in checkpoints.paths()] == ["1", "3", "4"]
    fresh = state(9, seed=1)
    assert checkpoints.go_back(fresh, 1)
    same(state(1), fresh)
    assert [p.name[-1] for p in checkpoints.paths()] == ["1"]
    assert not checkpoints.go_back(fresh, 2)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(tmp_path, renamed):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(state(5))
    aside = path.with_name(f".{path.name}.old")
    if renamed:  # the new one was in place already
        path.rename(aside)
        checkpoints.save(state(5))
    else:
        path.rename(aside)
    fresh = state(seed=1)
    assert Checkpoints(tmp_path).load_latest(fresh) == path
    same(state(5), fresh)
    assert not aside.exists()


def test_a_disk_that_is_full_before_the_state_is_written_says_so(tmp_path, monkeypatch):
    """With torch's own error in between, which names an internal file and no disk."""
    checkpoints = Checkpoints(tmp_path)
    save = torch.save

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 1000

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Full(file)))
    with pytest.raises(OSError, match="No space left") as error:
        checkpoints.save(state(2))
    assert error.value.filename.endswith("state.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_state_does_not_depend_on_its_file(tmp_path):
    fresh = state(seed=1)
    path = Checkpoints(tmp_path).save(state(7))
    Checkpoints(tmp_path).load_latest(fresh)
    for name in ("state.pt", "weights.safetensors"):
        size = (path / name).stat().st_size
        with open(path / name, "r+b") as file:
            file.write(bytes(size))
    same(state(7), fresh)


def test_a_checkpoint_with_a_generator_is_refused_with_a_sentence():
    made = state()
    saved = {name: value for name, value in made.state_dict().items() if name != "seed"}
    with pytest.raises(UserError, match="finish the run with the version that began it, or start a new one"):
        made.load_state_dict(saved)
