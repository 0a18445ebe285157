"""One file a system: how recovery and learning make a published method."""
