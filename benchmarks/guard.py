"""A guard at work: held-out robust accuracy of FGSM-RS alone, guarded, and of PGD-7, from the runs of a study.

sparring study moat
python benchmarks/guard.py results/moat-cpu docs/papers/guard.png
"""

import sys
from pathlib import Path

import matplotlib

from sparring.records import RunFolder

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ARMS = {"fgsm-rs": "FGSM-RS", "fgsm-rs-guarded": "FGSM-RS, guarded", "pgd-7": "PGD-7"}


def main() -> None:
    study, out = Path(sys.argv[1]), Path(sys.argv[2])
    seeds = sorted(int(path.name.rsplit("-", 1)[1]) for path in (study / "runs").glob("pgd-7-*"))
    if not seeds:
        raise SystemExit(f"{study} holds no runs of PGD-7: give the folder of `sparring study moat`")
    columns = min(len(seeds), 5)
    rows = -(-len(seeds) // columns)
    size = (3.0 * columns, 2.6 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, seed in zip(axes.flat, seeds, strict=False):
        for folder, name in ARMS.items():
            run = RunFolder(study / "runs" / f"{folder}-{seed}")
            epochs = [row for row in run.metrics() if "held_out" in row]
            last = epochs[-1]["step"]  # every training has as many passes, not as many steps
            ax.plot([r["step"] / last for r in epochs], [100 * r["held_out"]["robust"] for r in epochs], label=name)
            for event in run.guard():
                if event["action"] == "rescued":
                    ax.axvline(event["step"] / last, color="grey", linewidth=0.8, linestyle=":")
            print(name, seed, [event["what"] for event in run.guard()])
        ax.set(title=f"seed {seed}", ylim=(0, 80))
    for ax in axes.flat[len(seeds) :]:
        ax.set_visible(False)
    figure.supxlabel("share of training", fontsize=10)
    figure.supylabel("held-out accuracy under PGD, %", fontsize=10)
    axes[0][0].legend(fontsize=8)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
