"""NRT inside other trainers."""
