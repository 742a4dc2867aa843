"""Files on disk and on the hub: atomic writes, the workspace, runs and their cards."""
