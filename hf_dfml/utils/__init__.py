"""Small tools that every layer of the house may use: progress, checkpoints on disk, seeds, pixels."""
