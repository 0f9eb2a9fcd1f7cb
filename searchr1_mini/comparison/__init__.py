"""Tables of methods by data sets, the ablations, and the paper's own figures."""
