"""The training loop under a guard, which on an alarm stops, or goes back to a healthy checkpoint and continues."""

from ..training.engine import State, TrainingLoop
from ..training.guard import Alarm, GuardState, OverfittingMonitor
from .run_hooks import RunContext


def train(loop: TrainingLoop, context: RunContext) -> str | None:
    """Run the loop to its end, or until the guard stops it. Returns the reason if the guard stopped it, else None."""
    method, state, monitor, batches = context.recipe.method, context.state, context.monitor, context.batches
    if monitor is None:
        loop.run(method, state, batches)
        return None
    kept = GuardState.of(state)
    context.checkpoints.pinned = kept.healthy
    context.run.set_guard(kept.events)  # the process may have been killed before it wrote them
    if kept.stopped is not None:
        return kept.stopped
    while state.step < loop.epochs * len(batches):
        now, until = monitor.now(method, state)
        try:
            loop.run(now, state, batches, until)
        except Alarm as alarm:
            gone_back = _go_back(context, monitor)
            if monitor.guard.action == "stop":
                _record(context, monitor, monitor.stopped(state, alarm, gone_back))
                return GuardState.of(state).stopped
            _record(context, monitor, monitor.rescued(state, alarm, len(batches), gone_back))
    return None


def _go_back(context: RunContext, monitor: OverfittingMonitor) -> bool:
    """Go back to the last healthy checkpoint and return True; without one, training stays where it is."""
    state, kept = context.state, GuardState.of(context.state)
    gone_back = kept.healthy is not None and context.checkpoints.go_back(state, kept.healthy)
    if gone_back:
        context.run.rewind(state.step)
        context.weights.forget_later_best(state)
    monitor.keep_events(state, kept.events)
    return gone_back


def _record(context: RunContext, monitor: OverfittingMonitor, event: str) -> None:
    state: State = context.state
    context.checkpoints.save(state)
    context.weights.write_best_if_due(state)
    context.run.set_guard(GuardState.of(state).events)
    context.log(event)
