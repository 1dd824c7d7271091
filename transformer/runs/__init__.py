"""A run's folder and the loop that fills it; no model, text or reward is known here."""
