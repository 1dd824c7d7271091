"""Environments, one or many, here or in processes; the one loop that steps them, and scores."""
