"""The program ``ollm-rl``: the command line, with Ctrl-C caught before its imports begin."""

from ollm_rl.safekeeping.signals import end_at_ctrl_c


def main() -> int:
    """Entry point; see `ollm_rl.cli.main`."""
    with end_at_ctrl_c():
        from ollm_rl.cli import main as run_command_line
    return run_command_line()
