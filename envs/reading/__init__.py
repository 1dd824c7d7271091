"""Files of any format, read into a header and episodes; nothing is judged or inferred here."""
