"""A run outside of its folder: reports, pictures, films, models of Hugging Face's library."""
