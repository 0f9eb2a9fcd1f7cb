"""What keeps a run sound: its state, files, evaluations, checks and phases."""
