"""Policies, rollouts and trainers: PPO, the REINFORCE family, SB3 and Ray workers."""
