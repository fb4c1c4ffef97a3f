from .anchored import AnchoredPolicy as AnchoredPolicy
from .base import Acts as Acts
from .base import Choices as Choices
from .base import Evaluation as Evaluation
from .base import Policy as Policy
from .hub import push_to_hub as push_to_hub
from .hub import save_policy as save_policy
from .loading import load_policy as load_policy
from .option import OptionPolicy as OptionPolicy
from .token import TokenPolicy as TokenPolicy

__all__ = [
    "Acts",
    "AnchoredPolicy",
    "Choices",
    "Evaluation",
    "load_policy",
    "OptionPolicy",
    "Policy",
    "push_to_hub",
    "save_policy",
    "TokenPolicy",
]
