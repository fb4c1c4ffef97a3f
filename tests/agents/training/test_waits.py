"""A step of a policy on decisions does not wait for the device, which alone could find them by a mask."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.training.batches import UpdateBatch
from ollm_rl.agents.training.update import Penalties, Updater
from tests.agents.training.test_update import config, options_policy, rollout_of
from tests.tiny_models import tiny_model

aten = torch.ops.aten
WAITING = (aten.nonzero, aten.masked_select, aten._unique2, aten._local_scalar_dense)


class Waits(TorchDispatchMode):
    """Counts operations for which a host waits for a GPU, which alone knows the size or number of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if func.overloadpacket is torch.ops.aten.index else []
        by_mask = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        self.count += by_mask or func.overloadpacket in WAITING
        return func(*args, **(kwargs or {}))


def anchored_policy() -> AnchoredPolicy:
    return AnchoredPolicy(options_policy().model)


def frozen_head_policy() -> FrozenHeadPolicy:
    return FrozenHeadPolicy(tiny_model("llama"))


@pytest.mark.parametrize("make", [options_policy, anchored_policy, frozen_head_policy])
def test_a_step_of_a_policy_on_decisions_does_not_wait_for_the_device(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make()
    settings = config(ratio="topr", kl_coef=0.1)
    rollout = rollout_of(policy)
    rollout.decisions[:2, 1] = False
    batch = UpdateBatch.from_rollout(settings, rollout, torch.tensor([1.0, 0, 0, 1]), whole=False)
    updater = Updater(policy, settings)
    monkeypatch.setattr(updater.optimizer, "step", lambda: None)  # Adam counts its steps on the host
    with Waits() as waits:
        updater.step(batch, range(4), Penalties(0.0, 0.1))
    assert waits.count == 0
    with Waits() as waits:
        batch.rollout.at_places(batch.advantages)
    assert waits.count == 1, "without what the batch knows it would"


def test_known_places_are_those_that_the_device_would_find() -> None:
    rollout, some = rollout_of(options_policy()), rollout_of(options_policy())
    some.decisions[:2, 1] = False
    rewards = torch.tensor([1.0, 0, 0, 1])
    for episodes, whole, known in ((rollout, True, True), (some, False, True), (some, True, False)):
        batch = UpdateBatch.from_rollout(config(), episodes, rewards, whole=whole)
        found = batch.select([1, 0, 2]).rollout.places
        taken = batch.select([1, 0, 2])
        taken.know_places()
        assert ("places" in vars(taken.rollout)) == known
        assert torch.equal(torch.stack(taken.rollout.places), torch.stack(found))
        assert "places" not in batch.state()["rollout"]
