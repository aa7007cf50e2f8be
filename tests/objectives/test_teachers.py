"""Frozen models that objectives learn from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import bits, stop_at

import sparring as sp
from sparring import PGD, Build, GaussianStart, Linf, Method, State, UserError, fit
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher, TeacherMemory, weights_hash
from sparring.core.types import Batch, Context, ForwardCache, Progress
from sparring.models import small_cnn
from sparring.objectives import RSLAD
from sparring.runs.recipe import recipe_from_plain
from sparring.training import Interrupted

X = torch.rand(12, 1, 8, 8, generator=make_rng(0))


def net(seed=0, **more):
    torch.manual_seed(seed)
    return small_cnn(10, (1, 8, 8), width=4, batch_norm=True, **more)


def distilling(source):
    return Method(
        PGD(Linf(0.1), 1, start=GaussianStart()), RSLAD(source if isinstance(source, Teacher) else Teacher(source))
    )


def test_rslad_is_its_formula():
    student, teacher = net(0).double().eval(), net(1).double().eval()
    x, x_adv = X.double(), (X + 0.05).clamp(0, 1).double()
    objective = RSLAD(Teacher.of(teacher), share=0.8)
    ctx = Context(
        ForwardCache(student),
        Batch(x, torch.zeros(12).long(), torch.arange(12)),
        objective.init(None),
        Progress(0, 1, 1),
    )
    p = teacher(x).softmax(1)

    def kl(q):
        return (p * (p.log() - q.log())).sum(1)

    found = objective.outer(ctx, x_adv)
    assert torch.allclose(found["kl"], 0.8 * kl(student(x_adv).softmax(1)).mean())
    assert torch.allclose(found["kl_clean"], 0.2 * kl(student(x).softmax(1)).mean())
    assert torch.allclose(objective.inner(ctx)(x_adv).value, kl(student(x_adv).softmax(1)))


def test_a_teacher_is_a_frozen_copy_in_eval_mode():
    model = net(1).train()
    held = Teacher.of(model).memory()
    before = held.logits(X)
    assert model.training and all(p.requires_grad for p in model.parameters()), "the user's own model is as it was"
    assert torch.equal(before, model.eval()(X)) and not before.requires_grad
    with torch.no_grad():
        model.head.bias.add_(1)
    assert torch.equal(held.logits(X.clone()), before)


def test_a_teacher_that_is_a_classifier_gives_features():
    model = net(1)
    found = Teacher.of(model).memory().features(X)
    assert torch.equal(found, model.eval().features(X)) and not found.requires_grad


def test_a_teacher_runs_once_for_each_tensor():
    held = Teacher.of(net(1)).memory()
    passes = []
    held._held[0].model.register_forward_hook(lambda *args: passes.append(1))
    x_adv = X.clone()
    for x in (X, x_adv, X, x_adv):
        held.logits(x)
    assert len(passes) == 2


def test_a_checkpoint_holds_a_hash_of_the_teacher_and_refuses_another():
    state, other = (
        State.start(distilling(Teacher.of(teacher)), model := net(), torch.optim.SGD(model.parameters(), lr=0.1))
        for teacher in (net(1), net(2))
    )
    saved = state.state_dict()
    assert sum(t.numel() for t in saved["memory"].values()) == 1
    assert int(saved["memory"]["fingerprint"]) == weights_hash(net(1)) != weights_hash(net(2))
    with pytest.raises(UserError, match="has other weights than when this training began"):
        other.load_state_dict(saved)
    state.load_state_dict(saved)


def test_teachers_move_with_the_memory():
    memory = torch.nn.ModuleList([Teacher.of(net(1)).memory()]).double()
    assert memory[0].logits(X.double()).dtype == torch.float64
    assert len(list(memory.parameters())) == 0


def test_a_teacher_that_is_not_loaded_says_how_to_give_it():
    memory = TeacherMemory(Teacher("runs/big"))
    with pytest.raises(UserError, match=r"is not loaded: sparring\.fit loads it; in a loop of your own"):
        memory.logits(X)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(UserError, match="not in"):
        RSLAD(Teacher("runs/big"), 1.5)


def test_a_teacher_given_as_an_object_is_described_on_disk(tiny):
    recipe = replace(tiny, method=distilling(Teacher.of(net(1))))
    back = recipe_from_plain(recipe.plain())
    assert back.method == recipe.method and back.method.objective.teacher.model is None
    assert "weights, hash" in back.method.objective.teacher.source


@pytest.mark.slow
def test_a_run_learns_from_the_run_next_to_it_and_resumes_bit_for_bit(tiny, tmp_path):
    fit(tiny, tmp_path / "teacher-0")
    recipe = replace(tiny, model=Build(small_cnn, width=4, batch_norm=True), method=distilling("teacher-{seed}"))
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(7))
    assert bits(fit(recipe, tmp_path / "cut")) == bits(whole)
    images = sp.data.Digits().load()[1].x / 255
    with torch.no_grad():
        taught = sp.load_model(tmp_path / "teacher-0")(images).softmax(1)
        logits = [each(images).log_softmax(1) for each in (sp.load_model(whole.path), net(5).eval())]
    apart = [float(F.kl_div(each, taught, reduction="batchmean")) for each in logits]
    assert apart[0] < apart[1], "the student is nearer to its teacher than an untrained net"


@pytest.mark.slow
def test_a_teacher_of_other_classes_or_of_no_run_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        fit(replace(tiny, method=distilling("nowhere")), tmp_path / "a")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    with pytest.raises(UserError, match="is no run, no file of weights and none of robustbench:NAME"):
        fit(replace(tiny, method=distilling("evil:build")), tmp_path / "c")
    torch.manual_seed(0)
    few = small_cnn(4, (1, 8, 8), width=4)
    with pytest.raises(UserError, match="classes"):
        fit(replace(tiny, method=distilling(Teacher.of(few))), tmp_path / "b")
