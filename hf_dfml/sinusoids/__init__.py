"""DRO's regression benchmark: its tasks, pool, network and evaluation."""
