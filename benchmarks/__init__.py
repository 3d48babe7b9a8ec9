"""Speed, paired against stock stable-baselines3 in one run. Commands, never timed tests."""
