from .config import DemoConfig as DemoConfig
from .config import SweepConfig as SweepConfig
from .demo import run_demo as run_demo
from .sweep import run_sweep as run_sweep

__all__ = [
    "DemoConfig",
    "run_demo",
    "run_sweep",
    "SweepConfig",
]
