"""`dt report`: runs as one HTML file to look at, which needs nothing outside it."""
