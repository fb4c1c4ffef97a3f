"""One world for all wrong inputs."""

from pathlib import Path

import pytest

from tests.wrong_inputs.world import make_world


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world()
    return folder


@pytest.fixture
def world(made_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``make_world``, in which the test runs. Neither Ray nor the hub is reached."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.chdir(made_world)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ollm_rl.backbones.loading.hub_answers", lambda: False)
    monkeypatch.setattr("ollm_rl.backbones.names.hub_answers", lambda: False)
    monkeypatch.setattr("ollm_rl.problems.tables.hub_answers", lambda: False)
    return made_world
