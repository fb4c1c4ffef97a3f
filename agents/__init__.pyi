from .config.rl import RLConfig as RLConfig
from .config.rollout import RewardConfig as RewardConfig
from .evaluation.config import (
    AuditConfig as AuditConfig,
)
from .evaluation.config import (
    EvalConfig as EvalConfig,
)
from .evaluation.config import (
    ExploreConfig as ExploreConfig,
)
from .evaluation.config import (
    ReportConfig as ReportConfig,
)
from .evaluation.free_running import evaluate as evaluate
from .evaluation.free_running import run_eval as run_eval
from .policies.anchored import AnchoredPolicy as AnchoredPolicy
from .policies.base import Policy as Policy
from .policies.hub import push_to_hub as push_to_hub
from .policies.hub import save_policy as save_policy
from .policies.loading import load_policy as load_policy
from .policies.option import OptionPolicy as OptionPolicy
from .policies.token import TokenPolicy as TokenPolicy
from .search.config import SearchConfig as SearchConfig
from .training.run import train_agent as train_agent

__all__ = [
    "AnchoredPolicy",
    "AuditConfig",
    "EvalConfig",
    "evaluate",
    "ExploreConfig",
    "load_policy",
    "OptionPolicy",
    "Policy",
    "push_to_hub",
    "ReportConfig",
    "RewardConfig",
    "RLConfig",
    "run_eval",
    "save_policy",
    "SearchConfig",
    "TokenPolicy",
    "train_agent",
]
