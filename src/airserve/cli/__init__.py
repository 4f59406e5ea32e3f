"""The command line: app.py holds what commands share, the others the commands by area; no logic."""
