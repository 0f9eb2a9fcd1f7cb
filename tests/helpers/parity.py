"""A reward that differs within a group whatever the policy writes, so that every step has something to learn from."""


def parity(trajectory, example) -> float:
    """1 where a trajectory holds an odd number of tokens."""
    return float(len(trajectory.token_ids) % 2)
