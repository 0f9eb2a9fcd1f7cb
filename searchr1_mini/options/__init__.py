"""Every option, what it resolves to, and the command line."""
