"""What keeps a run sound: whole files, the same inputs, signals, invariants, warnings, memory."""
