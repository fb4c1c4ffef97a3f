"""Supervised fine-tuning on worked solutions with ``transformers.Trainer``.

A stage trains the backbone itself, the options on it (OLLM, Sec. 2.3), or a LoRA on it to compare the options with.
"""

import json
import math
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import get_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import TrainerState

from ollm_rl.backbones.loading import context_length, load_backbone, no_bars
from ollm_rl.backbones.lora import lora_config
from ollm_rl.backbones.names import CONFIG_FILE, OPTION_FILE, config_file
from ollm_rl.decode.acceptance import check_decoding
from ollm_rl.errors import UsageError
from ollm_rl.files.checksums import SUMS_FILE, folder_sums
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.board import SFTBoard
from ollm_rl.pretrain.callbacks import Reported, ShortLines, StopAtNonFinite, StopOnRequest, describe_whole_run
from ollm_rl.pretrain.checkpoints import Checksums, last_checkpoint
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.data import PadRight, encode_examples, solved_problems
from ollm_rl.pretrain.hidden_cache import collate_states, open_hidden_cache
from ollm_rl.pretrain.option_trainer import LossOfStates, OptionTrainer
from ollm_rl.pretrain.order import LengthOrderTrainer
from ollm_rl.pretrain.token_loss import chunk_loss
from ollm_rl.problems.prompts import format_prompts
from ollm_rl.processes import from_first, join, only_first_speaks, rank, world_size
from ollm_rl.runs import METRICS_FILE, exclusive_run, write_atomic
from ollm_rl.safekeeping.outputs import full_disk_named
from ollm_rl.safekeeping.signals import catch_sigterm
from ollm_rl.services.trackers import Trackers, require_packages
from ollm_rl.settings import expect
from ollm_rl.streams import Purpose, integer_seed


class MetricsFile(TrainerCallback):
    """Writes every logged line to ``metrics.json`` beside the checkpoints.

    A resumed run continues the file, since ``Trainer`` restores its log history. The last line is about the whole run,
    not about the time since its last start.
    """

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step too, so that the lines cover all steps."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the whole history; it is short."""
        if "train_loss" in state.log_history[-1]:
            if state.global_step < state.max_steps:  # stopped early: the line comes when the run has ended
                return
            describe_whole_run(state.log_history)
        if rank() == 0:
            write_atomic(Path(args.output_dir) / METRICS_FILE, json.dumps(state.log_history, indent=1))


def run_sft(config: SFTConfig) -> Path:
    """Train, from the last checkpoint if there is one, and write the result into ``config.out``.

    Returns:
        The folder, which ``OptionModel.from_pretrained`` (stage options), ``load_backbone`` (stage backbone) or peft
        (stage lora) reads.

    Raises:
        UsageError: If a setting, the data or the folder does not fit; the message says what to change.
        RunError: If the loss or the gradient is no longer finite, or the disk is full.
    """
    expect(config, SFTConfig)
    require_packages(config.report_to)
    device = join(config.device)
    with only_first_speaks():
        _run_sft(config, device)
    return config.out


def _run_sft(config: SFTConfig, device: torch.device) -> None:
    passes = config.gradient_accumulation_steps
    if config.batch_size // passes < world_size():
        raise UsageError(
            f"batch_size={config.batch_size} in {passes} passes has too few solutions for {world_size()} processes; "
            "raise it or start fewer"
        )
    problems = solved_problems(config)
    precision = torch.bfloat16 if config.stage != "backbone" and config.dtype == "bfloat16" else torch.float32
    backbone, tokenizer = load_backbone(config.backbone, dtype=precision, device=device)
    format_prompts(tokenizer, config)
    check_decoding(backbone)  # what is trained here is decoded later
    context = context_length(backbone)
    max_length = min(config.max_length, context)
    examples: Any = encode_examples(problems, tokenizer, max_length=max_length, context=context)
    set_seed(integer_seed(config.seed, Purpose.SFT_WEIGHTS))
    model = trainable(backbone, config)
    result_file = config.out / "config.json" if config.stage == "backbone" else config_file(config.out)
    with ExitStack() as lock:
        run = exclusive_run(config.out, "sft", config)
        if from_first(lambda: lock.enter_context(run) and result_file.exists()):
            print(f"{config.out} is finished already")
        else:
            with no_bars():
                _train(with_steps(config, len(examples)), model, tokenizer, examples, device)


def _train(
    config: SFTConfig, model: Any, tokenizer: PreTrainedTokenizerBase, examples: Any, device: torch.device
) -> None:
    """Train the model of a stage and write the result."""
    collator: Any = PadRight(int(tokenizer.pad_token_id))
    if config.cache is not None:
        with full_disk_named(config.cache):
            examples = open_hidden_cache(model, examples, config.cache, pad_token_id=collator.pad_token_id)
        collator = collate_states
    trainer_class = OptionTrainer if config.stage == "options" else LengthOrderTrainer
    with Trackers(config.report_to, config.out, asdict(config)) as trackers:
        trainer = trainer_class(
            model=model,
            args=training_arguments(config, device),
            train_dataset=examples,
            data_collator=collator,
            callbacks=[StopAtNonFinite(), MetricsFile(), *_boards(config), Checksums(), Reported(trackers)],
        )
        if rank():  # Trainer seeded all alike; the noise of each is its own
            torch.manual_seed(integer_seed(config.seed, Purpose.SFT_TRAINER, rank()))
        train_and_save(trainer, tokenizer, config.out)


def _boards(config: SFTConfig) -> list[TrainerCallback]:
    return [SFTBoard(config)] if "tensorboard" in config.report_to else []


def with_steps(config: SFTConfig, num_examples: int) -> SFTConfig:
    """The settings with the number of steps that ``epochs`` takes, if it is set."""
    if config.epochs is None:
        return config
    steps = math.ceil(config.epochs * math.ceil(num_examples / config.batch_size))
    print(f"{config.epochs:g} epochs of {num_examples} solutions are {steps} steps")
    return replace(config, epochs=None, max_steps=steps)


def trainable(backbone: PreTrainedModel, config: SFTConfig) -> Any:
    """The model of a stage; only the weights that the stage trains have gradients."""
    if config.stage != "options":
        chunk_loss(backbone)
    if config.stage == "backbone":
        return backbone.train()
    if config.stage == "lora":
        return get_peft_model(backbone, lora_config(backbone, config.lora_rank))
    return LossOfStates.from_backbone(backbone, config.options)


def training_arguments(config: SFTConfig, device: torch.device) -> TrainingArguments:
    """Our settings as ``TrainingArguments``."""
    arguments = TrainingArguments(
        output_dir=str(config.out),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size // config.gradient_accumulation_steps,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, config.max_steps // 20),
        max_grad_norm=1.0,
        bf16=config.stage != "options" and config.dtype == "bfloat16",
        # The option model itself reads rows of similar length together, the other stages have a LengthOrder.
        train_sampling_strategy="random",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to="none",  # SFTBoard and Reported write
        seed=integer_seed(config.seed, Purpose.SFT_TRAINER),
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=config.stage != "options",  # such as those of a vision tower
        disable_tqdm=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise each visible GPU would get a batch of batch_size
    return arguments


def train_and_save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Train from the last intact checkpoint and write model and tokenizer into ``out``.

    The model's config is written last, since its presence marks the run as finished. SIGTERM ends the run with exit
    code 143, once a checkpoint is saved after the next line of metrics.
    """
    with catch_sigterm() as stop_requested:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ShortLines())
        trainer.add_callback(StopOnRequest(stop_requested))
        checkpoint = from_first(lambda: last_checkpoint(out))
        try:
            if checkpoint is None or not _restore_end(trainer, checkpoint):
                trainer.train(resume_from_checkpoint=checkpoint)
        except UnpicklingError as error:  # Trainer too loads nothing else
            reason = f"{checkpoint} holds more than tensors and plain data and is not loaded"
            raise UsageError(f"{reason}; delete it") from error
    if trainer.state.global_step < trainer.state.max_steps:
        if rank() == 0:
            print(f"stopped; step {trainer.state.global_step} is saved, the same command resumes", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)
    from_first(lambda: _save_result(trainer, tokenizer, out))


def _save_result(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    staging = out / "unfinished"
    shutil.rmtree(staging, ignore_errors=True)  # with what a kill left in it
    trainer.save_model(str(staging))
    if not isinstance(trainer.model, OptionModel):  # whose file of weights holds its own checksum
        # People may correct the name of the backbone in the config of an adapter.
        write_atomic(staging / SUMS_FILE, folder_sums(staging, leave_out=(CONFIG_FILE,)))
    tokenizer.save_pretrained(out)
    for path in sorted(staging.iterdir(), key=lambda path: path.name in ("config.json", CONFIG_FILE, OPTION_FILE)):
        path.replace(out / path.name)
    staging.rmdir()


def _restore_end(trainer: Trainer, checkpoint: str) -> bool:
    """Load the checkpoint if it is that of the last step, from which ``Trainer.train`` would train one step more."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.global_step < trainer.args.max_steps:
        return False
    trainer.state = state
    trainer._load_from_checkpoint(checkpoint)
    trainer.log({"train_loss": 0.0, "total_flos": state.total_flos})  # MetricsFile fills in the loss
    return True
