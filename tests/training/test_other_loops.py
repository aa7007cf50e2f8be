"""Training by `Method.loss` in Lightning, Accelerate and the Trainer of transformers, with evaluation as a callback."""

import pytest
import torch
from conftest import toy_data, toy_net
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sparring import PGD, TRADES, GaussianStart, Linf, Method, audit, evaluate
from sparring.core.types import pixels
from sparring.evaluation import AuditBudget

pytestmark = pytest.mark.slow

THREAT = Linf(0.1)
METHOD = Method(PGD(THREAT, 2, start=GaussianStart()), TRADES(1.0))
DATA = toy_data(120)
X, Y = pixels(DATA.x), DATA.y
LOADER = DataLoader(TensorDataset(X, Y), batch_size=30)


def robust(model):
    return evaluate(model, LOADER, "pgd", threat=THREAT).table()["pgd"].value


def audited(model):
    """Verdicts of an audit by the names of its checks, from a loader, as a callback would ask for them."""
    few = AuditBudget(steps=5, queries=20, surrogate_steps=5)
    return {finding.name: finding.verdict for finding in audit(model, LOADER, eps=0.1, budget=few)}


def net():
    torch.manual_seed(0)
    return toy_net()


@pytest.mark.filterwarnings("ignore")  # of its own dependencies
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    found, verdicts = [], {}

    class Robust(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = net()

        def training_step(self, batch, number):
            return METHOD.loss(self.model, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)

    class Evaluation(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            found.append(robust(module.model))

        def on_train_end(self, trainer, module):
            verdicts.update(audited(module.model))

    module = Robust()
    before = robust(module.model)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_epochs=8, accumulate_grad_batches=2, callbacks=[Evaluation()], default_root_dir=tmp_path, **options
    )
    trainer.fit(module, LOADER)
    assert verdicts["gradient flow"] == "pass"
    assert module.model.training, "an audit leaves the mode as it was"
    assert len(found) == 8 and found[-1] > before + 0.2


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = net()
    before = robust(model)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), LOADER
    )
    for _ in range(12):
        for batch in loader:
            loss = METHOD.loss(accelerator.unwrap_model(model, keep_fp32_wrapper=False), batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert robust(accelerator.unwrap_model(model, keep_fp32_wrapper=False)) > before + 0.2


class Rows(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"pixel_values": X[i], "labels": Y[i]}


def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    found, verdicts = [], {}

    class Robust(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return METHOD.loss(model, (inputs["pixel_values"], inputs["labels"]))

    class Evaluation(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **rest):
            found.append(robust(model))

        def on_train_end(self, args, state, control, model=None, **rest):
            verdicts.update(audited(model))

    model = net()
    before = robust(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=8,
        per_device_train_batch_size=30,
        learning_rate=0.02,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    Robust(model, arguments, train_dataset=Rows(), callbacks=[Evaluation()]).train()
    assert verdicts["gradient flow"] == "pass"
    assert len(found) == 8 and found[-1] > before + 0.2
