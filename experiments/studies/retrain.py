"""Train a run again whose checkpoints did not travel: ``python -m ollm_rl.experiments.studies.retrain RUN``.

A run that has its last checkpoint is finished already, and nothing happens.
"""

import argparse

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.names import resolve
from ollm_rl.experiments.script import start


def retrain(run: str) -> None:
    """Train by the settings of the run."""
    model = resolve(run).require("run", role="run")
    train(RLConfig(**{**model.description, "out": model.folder, "model": model.trained_on}))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of ollm-rl train")
    retrain(parser.parse_args().run)


if __name__ == "__main__":
    start(main)
