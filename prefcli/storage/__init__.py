"""What lies on disk and on the hub: whole files, the workspace, runs and their cards."""
