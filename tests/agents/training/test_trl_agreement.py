"""Advantages and losses of the policy gradient against TRL's trainers, run on the same numbers."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from datasets import Dataset

from ollm_rl.agents.training.advantages import episode_advantages, kl_estimate, ppo_loss
from tests.tiny_models import VOCAB, save_backbone, tiny_tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'trl>=1.16'")

GROUP = 4
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.25, 1.0, 0.7]  # three groups, the middle one all equal


def trl_trainer(method: str, folder: Path, reward: Any, **settings: Any) -> Any:
    """TRL's trainer of a tiny model on three prompts with twelve completions per step."""
    return getattr(trl, f"{method}Trainer")(
        model=save_backbone(folder / "backbone"),  # a name, not a model: TRL loads its reference from it a second time
        reward_funcs=reward,
        args=getattr(trl, f"{method}Config")(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=len(REWARDS),
            num_generations=GROUP,
            max_completion_length=3,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["one", "two", "three"]}),
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize(
    ("method", "settings", "baseline", "rtol"),
    [
        # TRL adds 1e-4 to the standard deviation and we add 1e-6: ours are larger by 9.9e-5 / deviation, relatively.
        # That is 2.2e-4 in the third group, whose deviation of 0.448 is the smallest that is not 0.
        ("GRPO", {"scale_rewards": "group"}, "group", 2.5e-4),
        ("RLOO", {"normalize_advantages": False}, "leave-one-out", 1e-6),  # the same sums except for rounding
    ],
)
def test_advantages_are_those_of_trls_trainers_for_the_same_rewards(
    method: str, settings: dict[str, Any], baseline: Literal["group", "leave-one-out"], rtol: float, tmp_path: Path
) -> None:
    asked: list[str] = []

    # By position and not by prompt: the sampler shuffles the prompts.
    def reward(prompts: list[str], **_: Any) -> list[float]:
        asked.extend(prompts)
        return REWARDS

    trainer = trl_trainer(method, tmp_path, reward, beta=0.0, **settings)
    expected = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))["advantages"]
    # A group is contiguous in TRL too.
    assert asked == [prompt for prompt in asked[::GROUP] for _ in range(GROUP)] and len(set(asked)) == 3
    found = episode_advantages(torch.tensor(REWARDS), GROUP, baseline)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_the_clipped_loss_with_its_kl_penalty_and_its_gradient_are_those_of_trls_grpo(
    kl_coef: float, tmp_path: Path
) -> None:
    trainer = trl_trainer(
        "GRPO",
        tmp_path,
        lambda prompts, **_: [0.0] * len(prompts),
        loss_type="bnpo",  # the mean over all tokens of a batch
        epsilon=0.2,
        beta=kl_coef,
        use_bias_correction_kl=False,  # else TRL weights the KL's tokens by the ratio
    )
    model = trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCAB, (4, 5 + 6), generator=generator)  # prompts of 5 tokens, completions of up to 6
    written = torch.arange(6) < torch.tensor([[6], [2], [5], [3]])
    log_probs = model(ids).logits[:, 4:-1].log_softmax(-1).gather(2, ids[:, 5:, None])[..., 0]
    # Ratios from 0.39 to 1.53, well beyond the clip range on both sides, for advantages of both signs.
    old = log_probs.detach() + 0.4 * torch.randn(4, 6, generator=generator)
    reference = log_probs.detach() + torch.randn(4, 6, generator=generator)
    advantages = torch.tensor([1.5, -0.5, -2.0, 1.0])

    expected = trainer.compute_loss(
        model,
        {
            "prompt_ids": ids[:, :5],
            "prompt_mask": torch.ones(4, 5, dtype=torch.long),
            "completion_ids": ids[:, 5:],
            "completion_mask": written.long(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
        },
    )
    found = ppo_loss((log_probs - old)[written], advantages[:, None].expand(4, 6)[written], 0.2)
    found = found + kl_coef * kl_estimate((reference - log_probs)[written]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
