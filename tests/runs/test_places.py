"""Where a process stands among those of torchrun or srun."""

import pytest

from sparring import UserError
from sparring.runs.processes import Place, first_host, place_in, together

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[003-006,9],login1",
    "SLURM_JOB_ID": "1234567",
}


def test_torchrun_and_srun_tell_a_process_its_place():
    assert place_in(TORCHRUN) == Place(3, 8, 1, "node7", 29500)
    assert place_in(SRUN) == Place(5, 16, 1, "node003", 34567)
    assert place_in({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "1234"}) == Place(5, 16, 1, "here", 1234)


@pytest.mark.parametrize("alone", [{}, {"SLURM_JOB_ID": "3"}, {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_works_alone(alone, monkeypatch):
    assert place_in(alone) is None
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", *SRUN):
        monkeypatch.delenv(name, raising=False)
    with together("cpu") as device:
        assert device == "cpu"


def test_what_torchrun_should_have_set_is_named():
    with pytest.raises(UserError, match="MASTER_PORT is not set: use torchrun"):
        place_in({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("a,b", "a"), ("gpu[12-14]", "gpu12"), ("x[1,3-4],y2", "x1"), ("n[08]-ib", "n08")],
)
def test_the_first_machine_of_a_list_of_slurm(nodes, first):
    assert first_host(nodes).startswith(first)


def test_more_processes_than_gpus_get_a_sentence(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with (
        pytest.raises(UserError, match="this machine has 1 GPUs, but is asked for a process number 2"),
        together("cuda"),
    ):
        pass
