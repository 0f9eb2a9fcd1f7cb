"""Files of the user's own, in whatever form they come: rows, gold answers, notes."""
