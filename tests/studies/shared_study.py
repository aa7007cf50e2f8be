"""A study of seconds, one that does not end, and commands that share the first.

`shared_study.py FOLDER`, which test_shared_studies.py runs, imports everything and forks three commands. One kills
itself at its first checkpoint, as soon as each has a training. The other two hold at the end of their first training
until the file `go` is there.
"""

import importlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from sparring import PGD, CrossEntropy, Linf, Method, WhiteBox
from sparring.attacks import FGSM
from sparring.core.serialization import Build
from sparring.data import Digits, Subset
from sparring.models import small_cnn
from sparring.recipes.small import quickstart
from sparring.records.statistics import Claim
from sparring.runs.recipe import Evaluation
from sparring.studies.study import Arm, JointMeasurement, Measurement, Study
from sparring.training.checkpoint import Checkpoints


def study(scale):
    """Two trainings, two seeds."""
    threat = Linf(0.1)
    one = replace(
        quickstart(0.1),
        data=Subset(Digits(), 100, 20),
        model=Build(small_cnn, width=2),
        method=Method(FGSM(threat), CrossEntropy()),
        epochs=2,
        batch_size=40,
        selection=PGD(threat, steps=1),
        evaluation=Evaluation({"fgsm": WhiteBox(FGSM(threat))}),
    )
    arms = (Arm("one", one), Arm("other", replace(one, lr=0.01)))
    claim = Claim("One is better.", "one less other", lambda c: c("one", "worst") - c("other", "worst"))
    return Study(
        name="shared",
        title="Shared",
        source="nowhere",
        baseline="one",
        arms=arms,
        claims=(claim,),
        seeds=2,
        measurements=(Measurement("held", hold, {}),),
        joint=JointMeasurement(join, {}),
    )


def endless(scale):
    """Two trainings that go on until they are stopped."""
    short = study(scale)
    arms = tuple(replace(arm, recipe=replace(arm.recipe, epochs=10_000)) for arm in short.arms)
    return replace(short, name="endless", arms=arms, seeds=1, measurements=(), joint=None)


def hold(run, device, how):
    wait_for(run.path.parent.parent / "go")
    run.analysis("held", "json").write_text(json.dumps({"how": dict(how)}))


def join(runs, path, device, how):
    with path.with_suffix(".times").open("a") as file:
        file.write("x")
    path.write_text(json.dumps({"how": dict(how)}))


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def begun(folder):
    """How many trainings somebody has begun."""
    return len(list(folder.glob("leases/o*/1.json")))


def command(folder, dies):
    """Run the study in a process of its own, which is returned."""
    child = os.fork()
    if child:
        return child
    save = Checkpoints.save

    def saved(self, state):
        save(self, state)
        while begun(folder) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    if dies:
        Checkpoints.save = saved
    with (folder / f"log-{os.getpid()}").open("w") as file:
        running.run_study(study("smoke"), folder, scale="smoke", workers=1, log=lambda text: print(text, file=file))
    os._exit(0)


if __name__ == "__main__":
    for module in ("matplotlib.backends.backend_agg", "scipy.stats", "torch._dynamo"):
        importlib.import_module(module)  # before the forks, and so once
    import sparring.runs.fit
    from sparring.studies import running, writing

    sparring.runs.fit.plot_learning_curve = writing.plot_study = lambda *args: args[-1].touch()
    Digits().load()
    where = Path(sys.argv[1])
    children = [command(where, dies) for dies in (True, False, False)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.stdout.write(json.dumps({"codes": codes, "processes": children}))
