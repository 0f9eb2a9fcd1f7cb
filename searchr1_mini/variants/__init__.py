"""What others have published since: each a function that the loop takes in the place of the paper's, or beside it."""
