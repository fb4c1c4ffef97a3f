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


class Waits(TorchDispatchMode):
    """Counts operations whose result has a size that only the device knows, for which a host waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if func.overloadpacket is torch.ops.aten.index else []
        by_mask = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        self.count += by_mask or func.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        return func(*args, **(kwargs or {}))


def anchored_policy() -> AnchoredPolicy:
    return AnchoredPolicy(options_policy().model)


def frozen_head_policy() -> FrozenHeadPolicy:
    return FrozenHeadPolicy(tiny_model("llama"))


@pytest.mark.parametrize("make", [options_policy, anchored_policy, frozen_head_policy])
def test_a_step_of_a_policy_on_decisions_does_not_wait_for_the_device(make: Any) -> None:
    policy = make()
    settings = config(ratio="topr", kl_coef=0.1)
    rollout = rollout_of(policy)
    rollout.decisions[:2, 1] = False
    batch = UpdateBatch.from_rollout(settings, rollout, torch.tensor([1.0, 0, 0, 1]), whole=False)
    with Waits() as waits:
        Updater(policy, settings).step(batch, range(4), Penalties(0.0, 0.1))
    assert waits.count == 0
    with Waits() as waits:
        batch.rollout.at_places(batch.advantages)
    assert waits.count == 1, "without what the batch knows it would"


def test_known_places_are_those_that_the_device_would_find() -> None:
    rollout = rollout_of(options_policy())
    rollout.decisions[:2, 1] = False
    rewards = torch.tensor([1.0, 0, 0, 1])
    for whole in (False, True):
        batch = UpdateBatch.from_rollout(config(), rollout, rewards, whole=whole)
        found = batch.select([1, 0, 2]).rollout.places
        taken = batch.select([1, 0, 2])
        taken.know_places()
        assert torch.equal(torch.stack(taken.rollout.places), torch.stack(found))
        assert taken.lengths != taken.num_decisions if whole else taken.lengths == taken.num_decisions == [7, 2, 5]
        assert "places" not in batch.state()["rollout"]
