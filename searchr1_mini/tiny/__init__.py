"""How the tiny base's own pre-training text is made."""
