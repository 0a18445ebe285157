"""Teacher -> task: inversion of a pretrained classifier into images, and the bank of what was recovered."""
