"""Questions and passages: data sets, files, the synthetic world, scripted episodes."""
