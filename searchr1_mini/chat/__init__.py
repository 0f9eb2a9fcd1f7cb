"""Questions answered live, in the terminal and in the browser."""
