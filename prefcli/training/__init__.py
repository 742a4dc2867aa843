"""From selected battles to a trained run: the loop, its checkpoints, and one fit per kind of model."""
