"""The constants of a finished run under optimal ablation: learned with the gates, and once more for the finished masks."""

from collections.abc import Sequence

import torch

from bigcircuit.ablated import Ablation
from bigcircuit.config import Config
from bigcircuit.display import Display
from bigcircuit.gates.discretise import Masks
from bigcircuit.optimal import NAME, Lessons, Start, optimal_ablation
from bigcircuit.streams import Streams
from bigcircuit.tasks.passes import Passes
from bigcircuit.train_state import TrainState


def final_ablation(
    config: Config,
    state: TrainState,
    streams: Streams,
    masks: Sequence[Masks],
    train: Lessons,
    held_out: Lessons,
    passes: Passes,
    display: Display,
) -> Ablation:
    """The ablation of the run; where constants are learned, with those of every member's finished masks.

    While gates are trained nodes are half open; constants of nodes that are closed for good are others. So they are fitted
    once more, from those that belong to the best gates on, on the pairs of the training, and stay as they were for a member
    whose KL on the validation pairs that does not lower. It depends on nothing but the state, so a resumed run does the same.
    """
    if config.ablation.kind != NAME:
        return streams.ablation
    steps = config.ablation.finish_steps
    found = [learner.best.constants for learner in state.learners]
    learned = {site: torch.stack([constants[site] for constants in found]) for site in found[0]}
    start = Start(learned, state.population.spread)
    if not steps:
        return start.ablation([{}] * len(masks))
    display.say(f"fitting the constants to the finished masks, {steps} steps")
    with display.training(steps, 0):
        return optimal_ablation(
            streams,
            masks,
            train,
            passes,
            start,
            held_out=held_out,
            steps=steps,
            batch_size=config.train.batch_size,
            seed=config.task.seed,
            watch=lambda step, kl: display.step(step, {"kl": kl}),
        )
