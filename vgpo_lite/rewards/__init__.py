"""Rewards: answers graded by processes that may be killed, form, and the user's own functions."""

from vgpo_lite.rewards.correctness import accuracy
from vgpo_lite.rewards.form import format_reward
from vgpo_lite.rewards.grader import Grader

__all__ = ["Grader", "accuracy", "format_reward"]
