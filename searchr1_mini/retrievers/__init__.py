"""Search engines beyond BM25 in memory: what they share, how one is chosen, probes that stand in for one."""
