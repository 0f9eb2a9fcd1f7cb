"""The method, by itself: what a step of Search-R1 is made of. It imports nothing of the other rooms."""
