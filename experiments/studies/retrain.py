"""Train a run again whose checkpoints did not travel: ``python -m ollm_rl.experiments.studies.retrain RUN``.

A run that has its last checkpoint is finished already, and nothing happens.
"""

import sys

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.names import resolve


def main(run: str) -> None:
    """Train by the settings of the run."""
    model = resolve(run).require("run", role="run")
    train(RLConfig(**{**model.description, "out": model.folder, "model": model.trained_on}))


if __name__ == "__main__":
    main(sys.argv[1])
