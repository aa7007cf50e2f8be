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
    figure, axes = plt.subplots(1, len(seeds), figsize=(3.4 * len(seeds), 2.9), sharey=True, squeeze=False)
    for ax, seed in zip(axes[0], seeds, strict=True):
        for folder, name in ARMS.items():
            run = RunFolder(study / "runs" / f"{folder}-{seed}")
            rows = [row for row in run.metrics() if "held_out" in row]
            last = rows[-1]["step"]  # every training has as many passes, not as many steps
            ax.plot([r["step"] / last for r in rows], [100 * r["held_out"]["robust"] for r in rows], label=name)
            for event in run.guard():
                if event["action"] == "rescued":
                    ax.axvline(event["step"] / last, color="grey", linewidth=0.8, linestyle=":")
            print(name, seed, [event["what"] for event in run.guard()])
        ax.set(title=f"seed {seed}", xlabel="share of training", ylim=(0, 80))
    axes[0][0].set_ylabel("held-out accuracy under PGD, %")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
