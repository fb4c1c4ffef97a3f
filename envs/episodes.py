"""Episodes of text generation in the slots of one decode engine, shared by both environments.

Letters: B slots, T tokens, H hidden, K options, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError
from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import as_tokenizer, context_length, load_tokenizer
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.prompt_store import PromptStore
from ollm_rl.devices import Fetched, to_device
from ollm_rl.envs.option_info import InfoField, check_fields, option_info
from ollm_rl.envs.own_rewards import Rewards, columns_of, own_rewards, score
from ollm_rl.envs.rewards import CORRECTNESS_ONLY, all_weights, reward_terms, total
from ollm_rl.envs.shared_models import shared_model
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem, listed
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.settings import Count, checked, shown

ActionSpace = Literal["options", "tokens"]
ObservationMode = Literal["hidden", "hidden+text"]
Observation = Any  # an array; in mode ``hidden+text`` a dictionary
Facts = dict[str, str | int | float]

# Characters of a text observation: Unicode's first plane without surrogates. U+FFFD replaces all others.
CHARACTERS = frozenset(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))


@dataclass(frozen=True)
class Transitions:
    """Results of one step, in arrays over all slots, (B,).

    Attributes:
        ran: Which slots ran an episode; the arrays below are 0 in the others.
        tokens: The appended tokens.
        terminations: Which episodes ended by the end-of-text token.
        truncations: Which episodes ended at the token limit.
        ended: Slots whose episode ended.
        outcomes: Waits for the checks of their answers. Gives each one's reward, and facts for its ``info``, its last
            token included. Slow checks go on until it is called, even if the next episodes have begun by then.
    """

    ran: np.ndarray
    tokens: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    ended: list[int]
    outcomes: Callable[[], list[tuple[float, Facts]]]


def check_render_mode(render_mode: str | None) -> None:
    """Refuse render modes other than ``ansi`` and None."""
    if render_mode not in (None, "ansi"):
        raise UsageError(f"render_mode={render_mode!r} is unknown; give 'ansi' or None")


def check_reset_options(options: Any, name: str, description: str) -> None:
    """Refuse options of ``reset`` other than one, which is called ``name``."""
    if not isinstance(options, dict | None):
        raise UsageError(f"options={shown(options)} is no dictionary; give {{{name!r}: ...}}, {description}")
    for unknown in set(options or {}) - {name}:
        raise UsageError(f"reset option {unknown!r} is unknown; give {name}, {description}")


class Episodes:
    """Slots that run one episode each.

    Args:
        model: An option model, or the folder of one.
        num_slots: B.
        problems: Problems, or a source that ``load_problems`` knows.
        action_space: ``options`` takes an option z and appends its most probable token; ``tokens`` takes the token.
        max_new_tokens: Number of tokens at which an episode is truncated.
        tokenizer: The backbone's tokenizer; None loads it by the backbone's name.
        reward: Functions of one's own; see `ollm_rl.envs.own_rewards`.
        reward_weights: Weights by the names in `ollm_rl.envs.rewards.TERMS`. The default is 1 for correctness, and
            nothing beside functions of one's own.
        observation_mode: ``hidden`` observes h_t, ``hidden+text`` a dictionary of h_t and the text so far.
        info_fields: What `options_now` gives, see `ollm_rl.envs.option_info`.
        compiled: Compile the model with torch.compile.

    Attributes:
        running: Which slots run an episode, (B,).
        tokens: Prompt and completion of every slot's last episode, which may have ended, (B, T).
        prompt_lengths: Number of tokens of its prompt, (B,).
        completion_lengths: Number of tokens of its completion so far, (B,).

    Raises:
        UsageError: If a setting does not fit, or a prompt leaves no room within the backbone's context.
        MissingError: If the folder holds no option model.
    """

    def __init__(
        self,
        model: OptionModel | str | Path,
        num_slots: int,
        problems: Sequence[Problem] | str,
        *,
        action_space: ActionSpace,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase | None,
        observation_mode: ObservationMode,
        reward: Rewards = None,
        reward_weights: Mapping[str, float] = CORRECTNESS_ONLY,
        info_fields: Sequence[InfoField] = (),
        compiled: bool = False,
    ) -> None:
        self.own_rewards = own_rewards(reward)
        own_weights = {one.name: one.weight for one in self.own_rewards}
        self.reward_weights = all_weights(reward_weights, own_weights)
        self.info_fields = check_fields(info_fields)
        checked("observation_mode", observation_mode, ObservationMode)
        checked("action_space", action_space, ActionSpace)
        checked("compiled", compiled, bool)
        num_slots = checked("num_envs", num_slots, Count)
        max_new_tokens = checked("max_new_tokens", max_new_tokens, Count)
        if not isinstance(model, OptionModel):
            model = shared_model(checked("model", model, Path))
        self.model = model
        name = self.model.backbone.config.name_or_path
        self.tokenizer = load_tokenizer(name) if tokenizer is None else as_tokenizer(tokenizer)
        self.problems = load_problems(problems) if isinstance(problems, str | Path) else listed(problems)
        self.end_tokens = end_tokens(self.model.backbone, self.tokenizer)
        self._index_by_id = _indices_by_id(self.problems)
        self.action_space_name, self.max_new_tokens = action_space, max_new_tokens
        self.num_actions = self.model.option_config.num_options if action_space == "options" else self.model.vocab_size
        self.observation_mode, self.closed = observation_mode, False
        context = context_length(self.model.backbone)
        self.prompts = encode_prompts(self.problems, self.tokenizer, max_length=context, max_new_tokens=max_new_tokens)
        max_length = max(map(len, self.prompts)) + max_new_tokens
        self.engine = DecodeEngine(self.model.backbone, num_slots, max_length, compiled=compiled)
        self._store = PromptStore(self.engine)
        self.running = np.zeros(num_slots, dtype=bool)
        self.tokens = np.zeros((num_slots, max_length), dtype=np.int64)
        self.prompt_lengths, self.completion_lengths = np.zeros((2, num_slots), dtype=np.int64)
        self._slot_problems = [self.problems[0]] * num_slots  # problem of every slot's last episode
        self._offered: torch.Tensor | None = None  # tokens of the options at ``hidden``, once they are needed

    @property
    def hidden(self) -> torch.Tensor:
        """h_t of every slot, (B, H), until its next step."""
        return self.engine.hidden

    def spaces(self) -> tuple[spaces.Space[Any], spaces.Discrete]:
        """Observation space and action space, Discrete(K) or Discrete(V), of one slot.

        Observations are Box(H,) in float32, or Dict(hidden=Box(H,), text=Text) in mode ``hidden+text``.
        """
        hidden = spaces.Box(-np.inf, np.inf, (self.model.hidden_size,), np.float32)
        if self.observation_mode == "hidden":
            return hidden, spaces.Discrete(self.num_actions)
        longest = max(map(len, self.tokenizer.get_vocab())) * self.engine.max_length
        text = spaces.Text(longest, min_length=0, charset=CHARACTERS)
        return spaces.Dict({"hidden": hidden, "text": text}), spaces.Discrete(self.num_actions)

    def find(self, problem: str | int) -> int:
        """Index of a problem, which is named by its id or its index."""
        is_index = isinstance(problem, int | np.integer) and not isinstance(problem, bool)
        index = int(problem) if is_index else self._index_by_id.get(problem, -1) if isinstance(problem, str) else -1
        if not 0 <= index < len(self.problems):
            count = len(self.problems)
            raise UsageError(
                f"problem {problem!r} is unknown; there are {count}: give a number from 0 to {count - 1}, or an id"
            )
        return index

    def start(self, slots: Sequence[int], indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[dict[str, str]]:
        """Begin episodes on the problems with these indices; returns their infos.

        ``upcoming`` may name problems that come next, the soonest first. Their prompts are encoded in the same pass.
        """
        self.check_open()
        prompts = [self.prompts[i] for i in indices]
        self._store.fill(slots, prompts, (self.prompts[i] for i in upcoming))
        self._offered = None
        for slot, index, prompt in zip(slots, indices, prompts, strict=True):
            self._slot_problems[slot] = self.problems[index]
            self.tokens[slot, : len(prompt)] = prompt
            self.prompt_lengths[slot], self.completion_lengths[slot] = len(prompt), 0
            self.running[slot] = True
        return [
            {"problem": self.problems[i].id, "question": self.problems[i].question, "answer": self.problems[i].answer}
            for i in indices
        ]

    def advance(self, actions: np.ndarray) -> Transitions:
        """Append a token to every running episode; does nothing if none runs.

        Args:
            actions: Options or tokens, (B,); those of idle slots are ignored.

        Raises:
            UsageError: If an action is no whole number or out of range, or their number is wrong; no episode has
                moved then.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        self.check_open()
        ran = self.running.copy()
        tokens = self._append(actions) if ran.any() else np.zeros(len(ran), dtype=np.int64)
        terminations = ran & np.isin(tokens, self.end_tokens)
        truncations = ran & ~terminations & (self.completion_lengths >= self.max_new_tokens)
        ended = np.flatnonzero(terminations | truncations).tolist()
        outcomes = self._begin_checks(ended)
        for slot in ended:
            self.running[slot] = False
            self.engine.release(slot)
        return Transitions(ran, tokens, terminations, truncations, ended, outcomes)

    def observation(self) -> Observation:
        """h_t of all slots, (B, H) float32; in mode ``hidden+text`` with a tuple of B texts."""
        return self.fetch_observation()()

    def fetch_observation(self, slots: Sequence[int] | None = None) -> Callable[[], Observation]:
        """Begin to copy the observation of N slots (None: of all), (N, H); the result, once called, waits and gives it.

        So the next episode can start in a slot while the device still computes the last observation of the one before.
        """
        # A list as the index would make the host wait.
        now = self.hidden if slots is None else self.hidden[to_device(slots, self.engine.device)]
        hidden = Fetched(now.float())
        if self.observation_mode == "hidden":
            return hidden.numpy
        every = range(len(self.running)) if slots is None else slots
        texts = tuple("".join(c if c in CHARACTERS else "\ufffd" for c in self.text(slot)) for slot in every)
        return lambda: {"hidden": hidden.numpy(), "text": texts}

    def options_now(self) -> dict[str, np.ndarray]:
        """The requested fields of `option_info` for all slots; only those of running episodes mean something."""
        if not self.info_fields or not self.running.any():
            return {}
        return option_info(self.model, self.hidden, self._option_tokens(), self.info_fields)

    def text(self, slot: int) -> str:
        """Prompt and completion so far, as the model reads them; those of the last episode if none runs."""
        length = self.prompt_lengths[slot] + self.completion_lengths[slot]
        # Decoded as a whole: a single token may be part of a character, or lose the space before it.
        text: str = self.tokenizer.decode(self.tokens[slot, :length])
        return text

    def close(self) -> None:
        """Free the memory of the slots; no episode can be started or advanced afterwards."""
        self.closed = True
        self.running[:] = False
        self.engine.free()
        self._store = PromptStore(self.engine)

    def check_open(self) -> None:
        """Raise ``gymnasium.error.ClosedEnvironmentError`` after ``close``."""
        if self.closed:
            raise ClosedEnvironmentError("the environment is closed; make a new one")

    def _append(self, actions: np.ndarray) -> np.ndarray:
        """Append the tokens of the actions to the running episodes; returns the tokens, (B,), 0 in idle slots."""
        ran = self.running
        if not np.issubdtype(np.asarray(actions).dtype, np.integer):
            raise UsageError(f"actions {np.asarray(actions).tolist()} are not whole numbers; give a number per slot")
        if np.shape(actions) != ran.shape:
            raise UsageError(f"got actions of shape {np.shape(actions)}; give {len(ran)}, one per slot")
        invalid = ran & ~((actions >= 0) & (actions < self.num_actions))
        if invalid.any():
            raise UsageError(
                f"action {actions[invalid.argmax()]} is out of range; {self.action_space_name} go from 0 to "
                f"{self.num_actions - 1}"
            )
        tokens: np.ndarray = np.where(ran, actions, 0).astype(np.int64)
        chosen = to_device(tokens, self.engine.device)
        if self.action_space_name == "options":
            chosen = self._option_tokens().gather(1, chosen[:, None])[:, 0]
            # Copied before the step, so that the code below runs while the device computes the step.
            tokens = np.where(ran, chosen.cpu().numpy(), 0)
        self.engine.step(chosen)
        self._offered = None
        slots = np.flatnonzero(ran)
        self.tokens[slots, (self.prompt_lengths + self.completion_lengths)[slots]] = tokens[slots]
        self.completion_lengths[slots] += 1
        return tokens

    def _option_tokens(self) -> torch.Tensor:
        """Tokens of the options at every slot's h_t, (B, K)."""
        if self._offered is None:
            self._offered = self.model.option_tokens(self.hidden)
        return self._offered

    def _begin_checks(self, slots: Sequence[int]) -> Callable[[], list[tuple[float, Facts]]]:
        """Begin to check the completions in these slots; the result, once called, waits and gives rewards and facts."""
        begins, ends = self.prompt_lengths, self.prompt_lengths + self.completion_lengths
        written = [self.tokens[slot, begins[slot] : ends[slot]].copy() for slot in slots]
        completions = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        problems = [self._slot_problems[slot] for slot in slots]
        pool = shared_pool()
        checks = [pool.submit(text, problem.answer) for text, problem in zip(completions, problems, strict=True)]

        def outcomes() -> list[tuple[float, Facts]]:
            scores = score(self.own_rewards, list(map(columns_of, problems)), completions)
            results = []
            for problem, tokens, completion, check, own in zip(
                problems, written, completions, checks, scores, strict=True
            ):
                verdict = check.result()
                terms = reward_terms(
                    problem.question,
                    completion,
                    verdict,
                    tokens=len(tokens),
                    max_tokens=self.max_new_tokens,
                    weights=self.reward_weights,
                )
                terms |= own.terms
                failures = {f"{name}_failure": fault for name, fault in own.faults.items()}
                facts: Facts = {"token": int(tokens[-1]), "completion": completion, "verdict": verdict.status}
                results.append((total(terms, self.reward_weights), {**facts, **terms, **failures}))
            return results

        return outcomes


def _indices_by_id(problems: Sequence[Problem]) -> dict[str, int]:
    indices: dict[str, int] = {}
    for index, problem in enumerate(problems):
        if (first := indices.setdefault(problem.id, index)) != index:
            raise UsageError(f"problems {first} and {index} both have the id {problem.id!r}; change one")
    return indices


def row(observation: Observation, index: int) -> Observation:
    """One slot's part of an observation."""
    if isinstance(observation, dict):
        return {name: values[index] for name, values in observation.items()}
    return observation[index]
