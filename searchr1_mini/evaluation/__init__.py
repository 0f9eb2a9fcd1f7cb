"""Tables of methods on data sets."""
