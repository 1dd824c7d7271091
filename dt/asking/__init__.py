"""How a run is asked for a return: targets, guidance, calibration, and how well the answers fit."""
