"""Alignment: reward models, DPO, and PPO and GRPO against rewards."""
