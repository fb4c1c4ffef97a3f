"""Episodes of text generation in the slots of one decode engine; what both environments share.

Letters: B slots, H hidden, K options, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError
from transformers import PreTrainedTokenizerBase

from ollm_rl.backbones import context_length, load_tokenizer
from ollm_rl.engine import DecodeEngine
from ollm_rl.envs.rewards import CORRECTNESS_ALONE, check_weights, reward_terms, total
from ollm_rl.model import OptionModel
from ollm_rl.prefill import PromptStore
from ollm_rl.problems import Problem, load_problems
from ollm_rl.prompts import encode_prompts
from ollm_rl.verify import verify

ActionSpace = Literal["options", "tokens"]
ObservationMode = Literal["hidden", "hidden+text"]
Observation = Any  # an array, or in ``hidden+text`` a dictionary

# What a text observation may be made of: Unicode's first plane without surrogates; U+FFFD stands for the rest.
CHARACTERS = frozenset(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))


@dataclass
class Episode:
    """One problem and the completion so far, as token ids."""

    problem: Problem
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Transition:
    """What one step did in one slot: reward, the two ways to end, and facts for ``info``."""

    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, str | int | float]


class Episodes:
    """Slots that run one episode each.

    Args:
        model: An option model, or the folder of one.
        num_slots: B.
        problems: Problems, or a source that ``load_problems`` knows.
        action_space: ``options`` takes an option z and appends its most probable token; ``tokens`` takes the token.
        max_new_tokens: Episodes are truncated at this many tokens.
        tokenizer: The backbone's; found by the backbone's name where left out.
        reward_weights: By the names in `ollm_rl.envs.rewards.TERMS`.
        observation_mode: ``hidden`` shows h_t, ``hidden+text`` a dictionary of h_t and the text so far.

    Raises:
        ValueError: If a setting does not fit, or a prompt leaves no room within the backbone's context.
        FileNotFoundError: If the folder holds no option model.
    """

    def __init__(
        self,
        model: OptionModel | str,
        num_slots: int,
        problems: Sequence[Problem] | str,
        *,
        action_space: ActionSpace,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase | None,
        observation_mode: ObservationMode,
        reward_weights: Mapping[str, float] = CORRECTNESS_ALONE,
    ) -> None:
        check_weights(reward_weights)
        if observation_mode not in ("hidden", "hidden+text"):
            raise ValueError(f"observation_mode={observation_mode!r} is unknown; give 'hidden' or 'hidden+text'")
        if action_space not in ("options", "tokens"):
            raise ValueError(f"action_space={action_space!r} is unknown; give 'options' or 'tokens'")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        self.model = OptionModel.from_pretrained(model) if isinstance(model, str) else model
        self.tokenizer = tokenizer or load_tokenizer(self.model.backbone.config.name_or_path)
        self.problems = load_problems(problems) if isinstance(problems, str) else list(problems)
        if not self.problems:
            raise ValueError("problems is empty; give at least one problem")
        self.end_token = int(self.tokenizer.eos_token_id)
        self._places = {problem.id: index for index, problem in enumerate(self.problems)}
        self.action_space_name, self.max_new_tokens = action_space, max_new_tokens
        self.reward_weights = dict(reward_weights)
        self.observation_mode, self.closed = observation_mode, False
        context = context_length(self.model.backbone)
        self.prompts = encode_prompts(self.problems, self.tokenizer, max_length=context, max_new_tokens=max_new_tokens)
        max_length = max(map(len, self.prompts)) + max_new_tokens
        self.engine = DecodeEngine(self.model.backbone, num_slots, max_length)
        self._store = PromptStore(self.engine)
        self.running: list[Episode | None] = [None] * num_slots
        self.written: list[list[int]] = [[] for _ in range(num_slots)]  # prompt and completion, after the end too
        self.hidden = torch.zeros(num_slots, self.model.hidden_size, device=self.engine.device)

    def spaces(self) -> tuple[spaces.Space[Any], spaces.Discrete]:
        """Observation space and action space, Discrete(K) or Discrete(V), of one slot.

        Observations are Box(H,) in float32, with the text so far Dict(hidden=Box(H,), text=Text).
        """
        count = self.model.option_config.num_options if self.action_space_name == "options" else self.model.vocab_size
        hidden = spaces.Box(-np.inf, np.inf, (self.model.hidden_size,), np.float32)
        if self.observation_mode == "hidden":
            return hidden, spaces.Discrete(count)
        longest = max(map(len, self.tokenizer.get_vocab())) * self.engine.max_length
        text = spaces.Text(longest, min_length=0, charset=CHARACTERS)
        return spaces.Dict({"hidden": hidden, "text": text}), spaces.Discrete(count)

    def find(self, problem: str | int) -> int:
        """Index of a problem given by its id or its index."""
        found = self._places.get(problem, -1) if isinstance(problem, str) else int(problem)
        if not 0 <= found < len(self.problems):
            raise ValueError(
                f"problem {problem!r} is unknown; there are {len(self.problems)}, counted from 0; give one or an id"
            )
        return found

    def start(self, slots: Sequence[int], indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[dict[str, str]]:
        """Begin episodes on the problems with these indices; returns their infos.

        Problems that come next may be named: their prompts are encoded in the same pass, for later.
        """
        self._check_open()
        prompts, later = ([self.prompts[i] for i in each] for each in (indices, upcoming))
        self.hidden[list(slots)] = self._store.fill(slots, prompts, later).float()
        for slot, index in zip(slots, indices, strict=True):
            self.running[slot] = Episode(self.problems[index])
            self.written[slot] = list(self.prompts[index])
        return [
            {"problem": self.problems[i].id, "question": self.problems[i].question, "answer": self.problems[i].answer}
            for i in indices
        ]

    def advance(self, actions: np.ndarray) -> dict[int, Transition]:
        """Append a token to every running episode; returns a transition for each slot that runs one.

        Args:
            actions: Options or tokens, (B,); those of idle slots do not matter.

        Raises:
            ValueError: If an action is out of range or their number is wrong; nothing has moved then.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        self._check_open()
        if np.shape(actions) != (len(self.running),):
            raise ValueError(f"got actions of shape {np.shape(actions)}; give {len(self.running)}, one a slot")
        count = int(self.spaces()[1].n)
        slots = [slot for slot, episode in enumerate(self.running) if episode is not None]
        for slot in slots:
            if not 0 <= actions[slot] < count:
                raise ValueError(
                    f"action {actions[slot]} is out of range; {self.action_space_name} go from 0 to {count - 1}"
                )
        chosen = torch.as_tensor(np.where(self._idle(), 0, actions), dtype=torch.long, device=self.engine.device)
        if self.action_space_name == "options":
            offered = self.model.option_tokens(self.hidden.to(self.model.backbone.dtype))
            chosen = offered.gather(1, chosen[:, None])[:, 0]
        self.hidden = self.engine.step(chosen).float()
        tokens = chosen.tolist()
        return {slot: self._moved(slot, tokens[slot]) for slot in slots}

    def observation(self) -> Observation:
        """Of every slot: h_t, (B, H) float32, in ``hidden+text`` with a tuple of B texts."""
        hidden: np.ndarray = self.hidden.cpu().numpy().copy()
        if self.observation_mode == "hidden":
            return hidden
        texts = map(self.text, range(len(self.running)))
        return {"hidden": hidden, "text": tuple("".join(c if c in CHARACTERS else "\ufffd" for c in t) for t in texts)}

    def text(self, slot: int) -> str:
        """Prompt and completion so far as the model reads them, of the last episode where none runs."""
        # Decoded as a whole: one token may be a part of a character, or lose the space before it.
        text: str = self.tokenizer.decode(self.written[slot])
        return text

    def close(self) -> None:
        """Give the memory of the slots back; nothing can be started or advanced any more."""
        self.closed = True
        self.running = [None] * len(self.running)
        self.engine.free()
        self._store = PromptStore(self.engine)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environment is closed; make a new one")

    def _idle(self) -> np.ndarray:
        return np.array([episode is None for episode in self.running])

    def _moved(self, slot: int, token: int) -> Transition:
        episode = self.running[slot]
        assert episode is not None
        episode.tokens.append(token)
        self.written[slot].append(token)
        terminated = token == self.end_token
        truncated = not terminated and len(episode.tokens) >= self.max_new_tokens
        info: dict[str, str | int | float] = {"token": token}
        reward = 0.0
        if terminated or truncated:
            completion = self.tokenizer.decode(episode.tokens, skip_special_tokens=True)
            verdict = verify(completion, episode.problem.answer)
            terms = reward_terms(
                episode.problem.question,
                completion,
                verdict,
                tokens=len(episode.tokens),
                max_tokens=self.max_new_tokens,
                weights=self.reward_weights,
            )
            reward = total(terms, self.reward_weights)
            info |= {"completion": completion, "verdict": verdict.status, **terms}
            self.running[slot] = None
            self.engine.release(slot)
        return Transition(reward, terminated, truncated, info)
