"""The measurements of mechanisms.py, one file for each."""
