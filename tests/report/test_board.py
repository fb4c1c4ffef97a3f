"""TensorBoard: what a board writes of a run, also of one that was resumed."""

from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ollm_rl.report.board import Board
from ollm_rl.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    out: Path = Path("runs/a")
    rank: int = 16
    compiled: bool = False
    split: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2])
    inner: Inner = Inner()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_number_is_shown_from_its_first_step_on_once_it_has_changed(tmp_path: Path) -> None:
    board = Board(tmp_path, Outer(), ["rollout/reward"])
    for step, lost in enumerate((0.0, 0.0, 2.0, 2.0), start=1):
        still = {"train/learning_rate": 0.25, "rollout/staleness": 0.0, "rollout/mixed_groups": float("nan")}
        board.add({"time/lost": lost, **still}, step)
    board.close()
    assert points(tmp_path) == {
        "time/lost": [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0)],
        "train/learning_rate": [(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25)],
    }


def test_a_resumed_board_knows_what_was_written_before(tmp_path: Path) -> None:
    first = Board(tmp_path, Outer(), [])
    rows = {1: {"a": 1.0, "b": 5.0}, 2: {"a": 2.0, "b": 5.0}, 3: {"a": 3.0, "b": 5.0}, 4: {"a": 3.0, "b": 6.0}}
    for step in (1, 2, 3):
        first.add(rows[step], step)
    first.close()
    second = Board(tmp_path, Outer(), [], start=3)  # the third was not saved
    for step in (1, 2):
        second.known(rows[step], step)
    for step in (3, 4):
        second.add(rows[step], step)
    second.close()
    written = points(tmp_path)
    assert written["a"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 3.0)]
    assert written["b"] == [(1, 5.0), (2, 5.0), (3, 5.0), (4, 6.0)]


def test_settings_are_hparams_and_nested_ones_have_dots(tmp_path: Path) -> None:
    board = Board(tmp_path, Outer(), ["rollout/reward"])
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    content = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    values = {name: value.WhichOneof("kind") for name, value in content.session_start_info.hparams.items()}
    assert values == {
        "out": "string_value",
        "rank": "number_value",
        "compiled": "number_value",
        "seeds": "string_value",
        "inner.weight": "number_value",
    }
    assert content.session_start_info.hparams["rank"].number_value == 16
    experiment = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["rollout/reward"]
