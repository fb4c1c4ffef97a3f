"""The order of the examples of backbone and LoRA: similar lengths together, and another order in every epoch."""

from typing import Any

from transformers.trainer_pt_utils import LengthGroupedSampler

from ollm_rl.pretrain.shares import SharingTrainer
from ollm_rl.streams import Purpose, torch_generator


class LengthOrder(LengthGroupedSampler):
    """``LengthGroupedSampler`` whose order depends only on seed and epoch.

    The one of transformers draws from the global generator, whose state a run that resumes within an epoch no longer
    has. So from the second epoch on such a run would see other examples than an undisturbed one.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch, also before the one within which a run resumes."""
        self.generator = torch_generator(self.seed, Purpose.SFT_TRAINER, epoch)


class LengthOrderTrainer(SharingTrainer):
    """``Trainer`` with this order."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> LengthOrder:
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthOrder(together, dataset=self.train_dataset, seed=self.args.seed)
